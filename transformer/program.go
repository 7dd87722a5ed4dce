package transformer

import (
	"fmt"
	"sync"

	"github.com/gomlx/compute"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// nodes are a program's inputs or outputs by name.
type nodes map[string]*graph.Node

// values are the tensors given to a program or returned by it, by name.
type values map[string]*tensors.Tensor

// program is a computation with named inputs and outputs, compiled once per combination of input shapes.
type program struct {
	exec    *graph.Exec
	inputs  []string
	outputs []string
}

// programs keeps every program of an architecture by variant, and the shapes they were compiled for. Models of equal
// configuration on one backend may share them.
type programs struct {
	mu      sync.Mutex
	users   int // models that share it
	byKey   map[string]*program
	buckets buckets
}

// join adds a model to those that share the programs.
func (p *programs) join() *programs {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.users++
	return p
}

// recipe says how a program is built. Equal keys mean equal programs.
type recipe struct {
	key             string
	inputs, outputs []string
	build           func(nodes) nodes
}

// compute runs a program, which is built and compiled when the model meets it first. Panics while its graph is built
// come back as errors.
func (m *Model) compute(r recipe, args values) (values, error) {
	prog, err := m.programs.get(m.backend, r)
	if err != nil {
		return nil, err
	}
	return prog.call(args)
}

// get returns the program of a recipe.
func (p *programs) get(be compute.Backend, r recipe) (*program, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if prog := p.byKey[r.key]; prog != nil {
		return prog, nil
	}
	exec, err := graph.NewExec(be, func(in []*graph.Node) []*graph.Node {
		named := make(nodes, len(in))
		for i, n := range in {
			named[r.inputs[i]] = n
		}
		got := r.build(named)
		out := make([]*graph.Node, len(r.outputs))
		for i, name := range r.outputs {
			if out[i] = got[name]; out[i] == nil {
				panic(fmt.Errorf("program %s has no output %q", r.key, name))
			}
		}
		return out
	})
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", r.key, err)
	}
	exec.SetMaxCache(-1)
	prog := &program{exec: exec.WithName(r.key), inputs: r.inputs, outputs: r.outputs}
	if p.byKey == nil {
		p.byKey = map[string]*program{}
	}
	p.byKey[r.key] = prog
	return prog, nil
}

// call runs the program, compiling it if the shapes are new.
func (p *program) call(args values) (values, error) {
	in := make([]any, len(p.inputs))
	for i, name := range p.inputs {
		t := args[name]
		if t == nil {
			return nil, fmt.Errorf("program %s: input %q is missing", p.exec.Name(), name)
		}
		in[i] = t
	}
	out, err := p.exec.Call(in...)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", p.exec.Name(), err)
	}
	named := make(values, len(out))
	for i, t := range out {
		named[p.outputs[i]] = t
	}
	return named, nil
}

// leave releases the compiled programs when the last model leaves.
func (p *programs) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users > 0 {
		return
	}
	for _, prog := range p.byKey {
		prog.exec.Finalize()
	}
	p.byKey = nil
}
