package wsmand

import "holdfast/internal/hvsim/schema"

// Tables makes the simulator's class tables a Schema.
func Tables(s *schema.Schema) Schema { return tables{s} }

type tables struct{ s *schema.Schema }

func (t tables) Class(namespace, class string) (string, []string, bool) {
	c, ok := t.s.Class(namespace, class)
	if !ok {
		return "", nil, false
	}
	return c.Name, c.Keys(), true
}

func (t tables) Property(namespace, class, property string) (Param, bool) {
	c, ok := t.s.Class(namespace, class)
	if !ok {
		return Param{}, false
	}
	p, ok := c.Property(property)
	return Param{Name: p.Name, Type: p.Type.Name, Array: p.Array, In: true, Out: true}, ok
}

func (t tables) Method(namespace, class, method string) (string, []Param, bool) {
	c, ok := t.s.Class(namespace, class)
	if !ok {
		return "", nil, false
	}
	m, ok := c.Method(method)
	if !ok {
		return "", nil, false
	}
	params := make([]Param, len(m.Parameters))
	for i, p := range m.Parameters {
		params[i] = Param{Name: p.Name, Type: p.Type.Name, Array: p.Array, In: p.In, Out: p.Out}
	}
	return m.Name, params, true
}
