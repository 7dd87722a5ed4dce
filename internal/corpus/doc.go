// Package corpus reads texts that a model is run over: files of documents, plain or in JSON lines, compressed with gzip
// or not, become sequences of token ids that fit the model's context.
//
// Load keeps the whole corpus as ids, four bytes a token, so that sequences can be visited in any order: Batches groups
// them by length, so that little is padded, and what a job found can be shown later from the ids alone. A Reader gives
// the same sequences one after the other in constant memory.
//
// The tokenizer is a function, as this package knows no model.
package corpus
