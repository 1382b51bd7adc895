package probes

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/plainframework/agent/bpf"
)

// DropRule names requests of which no spans are made; they are measured all the same.
// Both patterns must match if both are given: a text, or its beginning with * behind it.
type DropRule struct {
	Path      string // of the request's URL, without its query
	UserAgent string
}

// The kernel compares this much of each text.
const (
	maxDropRules = 16 // DROP_RULES of bpf/event.h
	dropWords    = len(bpf.AgentDropRule{}.Path)
	// MaxDropText is the length that a pattern may have: a byte of the comparison is for
	// what ends the text.
	MaxDropText = 8*dropWords - 1
)

// dropRules are the rules as the kernel has them. A path ends where the text does or where
// a query begins, and so is two rules.
func dropRules(rules []DropRule) ([]bpf.AgentDropRule, error) {
	var out []bpf.AgentDropRule
	for _, r := range rules {
		if r.Path == "" && r.UserAgent == "" {
			return nil, fmt.Errorf("a rule that drops requests is empty")
		}
		var one bpf.AgentDropRule
		if err := setDropText(&one.Agent, &one.AgentMask, r.UserAgent, 0); err != nil {
			return nil, err
		}
		ends := []byte{0}
		if r.Path != "" && !strings.HasSuffix(r.Path, "*") {
			ends = append(ends, '?')
		}
		for _, end := range ends {
			if err := setDropText(&one.Path, &one.PathMask, r.Path, end); err != nil {
				return nil, err
			}
			out = append(out, one)
		}
	}
	if len(out) > maxDropRules {
		return nil, fmt.Errorf("more rules that drop requests than the kernel's side compares: a path counts for two, and %d are allowed", maxDropRules)
	}
	return out, nil
}

// setDropText makes words and masks of a pattern.
func setDropText(words, masks *[dropWords]uint64, pattern string, end byte) error {
	if pattern == "" {
		return nil
	}
	text, prefix := strings.CutSuffix(pattern, "*")
	if len(text) > MaxDropText || strings.Contains(text, "*") {
		return fmt.Errorf("pattern %q of a rule that drops requests: it may have %d bytes, and * only at its end", pattern, MaxDropText)
	}
	raw, mask := make([]byte, 8*dropWords), make([]byte, 8*dropWords)
	n := copy(raw, text)
	if !prefix {
		raw[n] = end
		n++
	}
	for i := range n {
		mask[i] = 0xff
	}
	for i := range words {
		words[i] = binary.NativeEndian.Uint64(raw[8*i:])
		masks[i] = binary.NativeEndian.Uint64(mask[8*i:])
	}
	return nil
}

func (k *kernel) storeDropRules(rules []DropRule) error {
	list, err := dropRules(rules)
	if err != nil {
		return err
	}
	for i := range list {
		if err := k.mapOf("drop_rules").Put(uint32(i), &list[i]); err != nil {
			return fmt.Errorf("store the rules that drop requests: %w", err)
		}
	}
	return nil
}
