package sqltext

import "strings"

const placeholder = "?"

// maxParams is how many placeholders IN (…) may hold before they become one.
const maxParams = 32

// sanitize puts the tokens together again without what is data. Changed is
// false if nothing is; the text is then empty.
func sanitize(tokens []token, d *dialect) (text string, changed bool) {
	var b strings.Builder
	rows := false // the list to come is a row after VALUES
	secret := 0   // words of IDENTIFIED BY seen
	for i := 0; i < len(tokens); i++ {
		t := tokens[i]
		out := t.text
		switch t.kind {
		case literal:
			out = placeholder
		case comment:
			out = cleanComment(t.text)
		case word, quoted:
			if secret == 2 {
				out = placeholder
			}
			secret = identifiedBy(secret, t.text)
			rows = strings.EqualFold(t.text, "values") || strings.EqualFold(t.text, "value")
		case punct:
			if d.colonNumber && t.text[len(t.text)-1] == ':' && !strings.HasSuffix(t.text, "::") {
				if n := placeholderNumber(tokens, i); n != "" {
					out += n
					b.WriteString(out)
					i++
					continue
				}
			}
			if t.text != "(" {
				break
			}
			inList := precededBy(tokens, i, "in")
			if end := skipList(tokens, i, inList, rows); end > i {
				b.WriteString(shortList(tokens[i:end+1], inList))
				changed = true
				i = skipRows(tokens, end, rows)
				continue
			}
		}
		changed = changed || out != t.text
		b.WriteString(out)
	}
	if !changed {
		return "", false
	}
	return b.String(), true
}

// placeholderNumber returns the number that makes the colon at i a placeholder.
func placeholderNumber(tokens []token, i int) string {
	if i+1 >= len(tokens) || tokens[i+1].kind != literal {
		return ""
	}
	n := tokens[i+1].text
	if len(n) > 5 || strings.Trim(n, "0123456789") != "" {
		return ""
	}
	return n
}

func identifiedBy(state int, w string) int {
	switch {
	case strings.EqualFold(w, "identified"):
		return 1
	case state == 1 && strings.EqualFold(w, "by"):
		return 2
	}
	return 0
}

// cleanComment returns what stays of a comment.
func cleanComment(c string) string {
	if strings.HasPrefix(c, "/*") {
		return "/*?*/"
	}
	if isQueryName(c) {
		return c
	}
	if c[0] == '#' {
		return "#?"
	}
	return "--?"
}

// isQueryName recognises the line "-- name: GetUser :one" of sqlc.
func isQueryName(c string) bool {
	rest, ok := strings.CutPrefix(c, "-- name: ")
	if !ok || len(c) > 128 {
		return false
	}
	name, mode, ok := strings.Cut(strings.TrimSuffix(rest, "\r"), " :")
	if !ok || name == "" || isDigit(name[0]) {
		return false
	}
	for _, c := range []byte(name) {
		if !isWordByte(c) || c >= 0x80 {
			return false
		}
	}
	switch strings.TrimSpace(mode) {
	case "one", "many", "exec", "execrows", "execresult", "execlastid", "batchexec", "batchone", "batchmany", "copyfrom":
		return true
	}
	return false
}

func precededBy(tokens []token, i int, w string) bool {
	k := previous(tokens, i)
	return k >= 0 && tokens[k].kind == word && strings.EqualFold(tokens[k].text, w)
}

// skipList returns the end of the list at i if it is to be shortened, else 0.
func skipList(tokens []token, i int, in, rows bool) int {
	if !in && !rows {
		return 0
	}
	end, literals, params := flatList(tokens, i)
	if end == 0 {
		return 0
	}
	if in && (literals > 1 || params > maxParams) {
		return end
	}
	if rows && literals > 0 {
		if n := next(tokens, end); n < len(tokens) && tokens[n].text == "," {
			return end
		}
	}
	return 0
}

// shortList writes the list without its literals: as one placeholder after IN,
// else item by item.
func shortList(list []token, in bool) string {
	if in {
		return "(" + placeholder + ")"
	}
	var b strings.Builder
	for _, t := range list {
		switch t.kind {
		case literal:
			b.WriteString(placeholder)
		case comment:
			b.WriteString(cleanComment(t.text))
		default:
			b.WriteString(t.text)
		}
	}
	return b.String()
}

// skipRows returns the end of the last of the rows that follow the one which
// ends at end.
func skipRows(tokens []token, end int, rows bool) int {
	for rows {
		comma := next(tokens, end)
		if comma >= len(tokens) || tokens[comma].text != "," {
			break
		}
		open := next(tokens, comma)
		if open >= len(tokens) || tokens[open].text != "(" {
			break
		}
		last, _, _ := flatList(tokens, open)
		if last == 0 {
			break
		}
		end = last
	}
	return end
}

// flatList measures the parentheses that open at i, if they hold nothing but
// literals, placeholders and NULL: the index of the closing one and how many
// there are of each; else 0.
func flatList(tokens []token, i int) (end, literals, params int) {
	for i++; i < len(tokens); i++ {
		switch t := tokens[i]; t.kind {
		case literal:
			literals++
		case param:
			params++
		case space, comment:
		case word:
			if !strings.EqualFold(t.text, "null") && !strings.EqualFold(t.text, "default") {
				return 0, 0, 0
			}
		case punct:
			switch t.text {
			case ")":
				return i, literals, params
			case "?":
				params++
			case ",", "-", "+", ":":
			default:
				return 0, 0, 0
			}
		default:
			return 0, 0, 0
		}
	}
	return 0, 0, 0
}
