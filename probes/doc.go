// Package probes asks what the memories in a model's feed-forward layers hold and do.
//
// In the reading of Geva et al. (2021, 2022), a feed-forward layer is a key-value memory: neuron i has a key, the row
// of the up (or gate) matrix, and a value v_i, the row of the down matrix. On a token it gets a coefficient m_i, the
// input of the down projection, and adds the sub-update m_i·v_i to the residual stream. Each probe is one function
// with an options struct and a result struct, which is what the command prints with --json:
//
//	Predict           what comes next
//	Activations       what stood at the sites of a run, and gradients there, as a file
//	Lens              what the residual stream would predict before and after each sublayer
//	TunedLens         maps of states to what the model will predict, trained
//	JacobianLens      maps of states to what they dispose the model to say, averaged
//	FutureLens        maps of states to what the model will predict later, fitted
//	Patchscope        what a state makes the model say elsewhere
//	Updates           which memories moved a prompt's residual stream most, and towards which tokens
//	Saturation        at which layer predictions settle in a corpus, and what settles them
//	Composition       how predictions are made out of memories and layers
//	EarlyExit         leaving the model where its dominant memories have decided
//	Triggers          which texts each memory answers to, as a file; TriggerSheets shows them
//	Agreement         whether values promote what follows the examples of their keys
//	PredictiveValues  the values that are surest of a token
//	Patterns          what the examples of memories have in common
//	TokenAblation     what is left of a coefficient when a token of the example is missing
//	Records           all that is known of a memory in a corpus
//	Concepts          what values stand for, with the user's labels
//	Factors           which memories are active together in a text
//	Values            which tokens the value of a memory stands for
//	Effect            what interventions on memories, heads and directions do to a prompt
//	Direction         a vector to steer along
//	KnowledgeNeurons  the memories that carry a fact
//	BuildIndex        which tokens every value stands for, as a file; Search finds memories in it by tokens
//	Links             what drives a memory and what it drives, by weights alone
//	Directions        what the values of a layer have in common, as tokens
//	Clusters          which memories stand for similar tokens
//	Diff              in which memories two models differ
//	Correlate         the linear map between what is predicted behind two prompts
//
// Ranks count from 0, the most probable token; equals are ordered by ascending id. Entropies are in nats.
package probes
