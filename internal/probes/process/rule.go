package process

import (
	"maps"
	"slices"
)

// Rule matches processes: every pattern that is set must match. In a pattern, *
// stands for any text, slashes too, and ? for one character. A pattern for what
// a process does not have, such as the namespace of one outside Kubernetes, does
// not match.
type Rule struct {
	Exe       string // path of the executable, as the process sees it
	Command   string // arguments, with a space between
	Container string // its name in Kubernetes, or its id
	Namespace string // of Kubernetes
	Pod       string // its name

	Labels      map[string]string // of the pod; pattern by key
	Annotations map[string]string // of the pod
	Env         map[string]string // that the process was started with
}

// Facts are what rules look at.
type Facts struct {
	Exe     string
	Command func() string            // read when a rule asks for it
	Env     func() map[string]string // likewise

	ContainerID string
	Container   string // its name

	Namespace, Pod      string
	Labels, Annotations map[string]string
}

// ofPod: the rule asks for what only the cluster knows.
func (r *Rule) ofPod() bool {
	return r.Namespace != "" || r.Pod != "" || r.Container != "" || len(r.Labels) > 0 || len(r.Annotations) > 0
}

// Matches tells whether all that the rule asks for is so. A rule that asks for
// nothing matches nothing.
func (r *Rule) Matches(f *Facts) bool {
	asked, ok := false, true
	check := func(pattern string, matches func() bool) {
		if pattern != "" {
			asked, ok = true, ok && matches()
		}
	}
	is := func(value string) func(string) bool {
		return func(pattern string) bool { return value != "" && Glob(pattern, value) }
	}
	for _, c := range []struct{ pattern, value string }{{r.Namespace, f.Namespace}, {r.Pod, f.Pod}, {r.Exe, f.Exe}} {
		check(c.pattern, func() bool { return is(c.value)(c.pattern) })
	}
	check(r.Container, func() bool { return is(f.Container)(r.Container) || is(f.ContainerID)(r.Container) })
	all := func(patterns map[string]string, values func() map[string]string) {
		for _, key := range slices.Sorted(maps.Keys(patterns)) {
			asked = true
			if !ok {
				return
			}
			value, has := values()[key]
			ok = has && Glob(patterns[key], value)
		}
	}
	all(r.Labels, func() map[string]string { return f.Labels })
	all(r.Annotations, func() map[string]string { return f.Annotations })
	// What comes from the memory of the process is read last.
	check(r.Command, func() bool { return is(f.Command())(r.Command) })
	all(r.Env, f.Env)
	return asked && ok
}

// Rules choose processes.
type Rules struct {
	// All chooses every process that no rule excludes; without it only those that
	// a rule of Include names.
	All     bool
	Include []Rule
	Exclude []Rule // wins
}

// Any tells whether the rules can choose anything.
func (r *Rules) Any() bool { return r.All || len(r.Include) > 0 }

// OfPods tells whether the choice can depend on what the cluster knows.
func (r *Rules) OfPods() bool {
	return slices.ContainsFunc(r.Include, func(r Rule) bool { return r.ofPod() }) ||
		slices.ContainsFunc(r.Exclude, func(r Rule) bool { return r.ofPod() })
}

// Choose tells whether a process is chosen, and if not, why.
func (r *Rules) Choose(f *Facts) (chosen bool, reason string) {
	for i := range r.Exclude {
		if r.Exclude[i].Matches(f) {
			return false, "excluded by a rule"
		}
	}
	if r.All {
		return true, ""
	}
	for i := range r.Include {
		if r.Include[i].Matches(f) {
			return true, ""
		}
	}
	return false, "not included by a rule"
}

// Glob tells whether a text matches a pattern, in which * stands for any text
// and ? for one byte. It takes at most the product of their lengths.
func Glob(pattern, text string) bool {
	p, t := 0, 0
	star, from := -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, from = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0: // the star takes one more
			from++
			p, t = star+1, from
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}
