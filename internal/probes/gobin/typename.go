package gobin

// TypeName returns the name of the type whose descriptor is at an address, as
// [Binary.TypeAddr] takes it; "" if there is none. The address may come from a
// running process (less what it was relocated by), so it is not trusted.
func (b *Binary) TypeName(addr uint64) string {
	if addr < b.md.types || addr >= b.md.etypes || addr%8 != 0 {
		return ""
	}
	v := b.view()
	t, ok := b.typeAt(v, addr)
	if !ok {
		return ""
	}
	return b.typeName(v, &t)
}
