package sqltext

import "strings"

// maxLookBack bounds how many tokens are looked at to tell what "…" is.
const maxLookBack = 256

// nameWords come before a name, in lists too; dataWords before data.
var (
	nameWords = wordSet(`select distinct all from join into update table as by on where or not set references
		index exists column constraint key only view to returning having when using add drop rename case unique with
		trigger database schema pragma recursive filter over partition order group`)
	dataWords = wordSet(`values in like glob regexp match limit offset between then else default is escape collate`)
)

func wordSet(list string) map[string]bool {
	set := map[string]bool{}
	for w := range strings.FieldsSeq(list) {
		set[w] = true
	}
	return set
}

// namePlace tells whether "…" after the given tokens is a name, in a dialect
// where it may also be a string. In doubt it is not.
func namePlace(before []token) bool {
	i := previous(before, len(before))
	if i < 0 {
		return false
	}
	switch t := before[i]; {
	case strings.HasSuffix(t.text, "."):
		return true
	case t.kind == word:
		w := strings.ToLower(t.text)
		if w == "and" {
			return !afterBetween(before[:i])
		}
		return nameWords[w]
	case t.text == "(" || t.text == ",":
		return inNameList(before, i)
	}
	return false
}

// inNameList tells whether the list that the "(" or "," at i belongs to is one
// of names: walk back to the word that governs it.
func inNameList(before []token, i int) bool {
	depth := 0
	for n := 0; i >= 0 && n < maxLookBack; n++ {
		t := before[i]
		switch {
		case t.text == ")":
			depth++
		case t.text == "(" && depth > 0:
			depth--
		case t.text == "(":
			return opensNameList(before, previous(before, i))
		case depth == 0 && t.kind == word:
			w := strings.ToLower(t.text)
			if dataWords[w] {
				return false
			}
			if nameWords[w] && w != "where" && w != "or" {
				return true
			}
		}
		i = previous(before, i)
	}
	return false
}

// opensNameList tells whether a "(" after the token at i begins names: after
// WHERE, or after the name of a table: INTO t (.
func opensNameList(before []token, i int) bool {
	if i < 0 {
		return false
	}
	if before[i].kind == word {
		switch w := strings.ToLower(before[i].text); {
		case dataWords[w]:
			return false
		case nameWords[w], w == "and":
			return true
		}
	}
	// The name may have several parts: "a"."b".
	for n := 0; n < 8 && i >= 0; n++ {
		k := previous(before, i)
		if k < 0 {
			return false
		}
		if before[k].text == "." || before[k].kind == quoted {
			i = k
			continue
		}
		switch strings.ToLower(before[k].text) {
		case "into", "table", "on", "exists", "references", "key", "index", "view":
			return true
		}
		return false
	}
	return false
}

func afterBetween(before []token) bool {
	i := previous(before, len(before))
	for n := 0; n < 8 && i >= 0; n++ {
		if strings.EqualFold(before[i].text, "between") {
			return true
		}
		i = previous(before, i)
	}
	return false
}

// previous returns the index of the last token before i that is neither white
// space nor a comment, or -1.
func previous(tokens []token, i int) int {
	for i--; i >= 0; i-- {
		if k := tokens[i].kind; k != space && k != comment {
			return i
		}
	}
	return -1
}

// next is previous in the other direction; len(tokens) if there is none.
func next(tokens []token, i int) int {
	for i++; i < len(tokens); i++ {
		if k := tokens[i].kind; k != space && k != comment {
			return i
		}
	}
	return i
}
