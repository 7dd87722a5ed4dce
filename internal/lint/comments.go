package main

import (
	"go/ast"
	"go/token"
	"sort"
	"strings"
)

// packageComments wants a package comment in every folder with Go code, of the form that godoc shows.
func packageComments(t *tree) []finding {
	documented := map[string]bool{}
	for _, f := range t.code() {
		if strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		want := "Package " + f.syntax.Name.Name
		if f.syntax.Name.Name == "main" {
			want = "Command "
		}
		doc := f.syntax.Doc != nil && strings.HasPrefix(f.syntax.Doc.Text(), want)
		documented[f.dir()] = documented[f.dir()] || doc
	}
	var found []finding
	for dir, ok := range documented {
		if !ok {
			found = append(found, finding{dir, 0, `no package comment ("Package …", or "Command …" for a program)`})
		}
	}
	sort.Slice(found, func(i, j int) bool { return found[i].file < found[j].file })
	return found
}

// docComments wants a comment on every exported name at the top level and every exported method of an exported type.
func docComments(t *tree) []finding {
	var found []finding
	for _, f := range t.code() {
		if strings.HasSuffix(f.name, "_test.go") {
			continue
		}
		for _, d := range f.syntax.Decls {
			for _, name := range undocumented(d) {
				found = append(found, finding{f.name, t.line(name.Pos()), name.Name + " has no doc comment"})
			}
		}
	}
	return found
}

func undocumented(d ast.Decl) []*ast.Ident {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Doc == nil && d.Name.IsExported() && (d.Recv == nil || ast.IsExported(receiver(d))) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		if d.Tok != token.IMPORT && (d.Doc == nil || d.Tok == token.TYPE && d.Lparen.IsValid()) {
			return undocumentedSpecs(d)
		}
	}
	return nil
}

func undocumentedSpecs(d *ast.GenDecl) []*ast.Ident {
	var names []*ast.Ident
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Doc == nil && s.Comment == nil && s.Name.IsExported() {
				names = append(names, s.Name)
			}
		case *ast.ValueSpec:
			if s.Doc != nil || s.Comment != nil {
				continue
			}
			for _, n := range s.Names {
				if n.IsExported() {
					names = append(names, n)
				}
			}
		}
	}
	return names
}

// receiver is the name of the method's type.
func receiver(d *ast.FuncDecl) string {
	x := d.Recv.List[0].Type
	for {
		switch y := x.(type) {
		case *ast.StarExpr:
			x = y.X
		case *ast.IndexExpr:
			x = y.X
		case *ast.IndexListExpr:
			x = y.X
		case *ast.Ident:
			return y.Name
		default:
			return ""
		}
	}
}
