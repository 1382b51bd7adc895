package logtext

import "strings"

// interest marks the bytes at which a secret can begin or be announced: one
// look at each byte decides that most need no more.
var interest = func() (t [256]bool) {
	for _, c := range []byte(":=-0123456789") {
		t[c] = true
	}
	for _, p := range prefixes {
		t[p.text[0]] = true
	}
	for _, c := range []byte("bB") { // bearer, basic
		t[c] = true
	}
	return t
}()

// prefix is the beginning of a kind of token, and how long it is at least
// altogether.
type prefix struct {
	text string
	min  int
}

var prefixes = []prefix{
	{"AKIA", 20}, {"ASIA", 20}, {"ABIA", 20}, {"ACCA", 20},
	{"ghp_", 30}, {"gho_", 30}, {"ghu_", 30}, {"ghs_", 30}, {"ghr_", 30}, {"github_pat_", 40},
	{"glpat-", 20},
	{"xoxa-", 20}, {"xoxb-", 20}, {"xoxe-", 20}, {"xoxo-", 20}, {"xoxp-", 20}, {"xoxr-", 20}, {"xoxs-", 20}, {"xapp-", 20},
	{"AIza", 39},
	{"sk_live_", 24}, {"sk_test_", 24}, {"rk_live_", 24}, {"whsec_", 24},
	{"npm_", 36},
	{"eyJ", 0}, // JSON Web Token, checked by jwt
	{"-----BEGIN ", 0},
}

// prefixesBy is prefixes by their first byte.
var prefixesBy = func() (t [256][]prefix) {
	for _, p := range prefixes {
		t[p.text[0]] = append(t[p.text[0]], p)
	}
	return t
}()

// redactBuiltin hides the secrets that need no configuration, in one pass.
func redactBuiltin(s string) string {
	var out []byte
	done := 0
	for i := 0; i < len(s); {
		if !interest[s[i]] {
			i++
			continue
		}
		from, to := secretAt(s, i, done)
		if to <= i {
			i++
			if isDigit(s[i-1]) { // the rest of a number that is no card
				for i < len(s) && isDigit(s[i]) {
					i++
				}
			}
			continue
		}
		out = append(out, s[done:from]...)
		out = append(out, Redacted...)
		done, i = to, to
	}
	if done == 0 {
		return s
	}
	return string(append(out, s[done:]...))
}

// secretAt returns where the secret is that begins at i or is announced there;
// to is 0 if there is none. It does not look before the given start.
func secretAt(s string, i, start int) (from, to int) {
	switch c := s[i]; {
	case c == ':' || c == '=':
		return namedSecret(s, i, start)
	case isDigit(c):
		if i > start && (isWord(s[i-1]) || s[i-1] == '.') {
			return 0, 0
		}
		return i, card(s, i)
	}
	if i > 0 && isWord(s[i-1]) {
		return 0, 0
	}
	if c := s[i] | 0x20; c == 'b' {
		return credentials(s, i)
	}
	for _, p := range prefixesBy[s[i]] {
		if i+len(p.text) > len(s) || s[i+1] != p.text[1] || !strings.HasPrefix(s[i:], p.text) {
			continue
		}
		switch p.text {
		case "eyJ":
			if i > 0 && s[i-1] == '-' { // inside of what has been looked at
				return 0, 0
			}
			return i, jwt(s, i)
		case "-----BEGIN ":
			return i, privateKey(s, i)
		}
		if end := tokenEnd(s, i); end-i >= p.min {
			return i, end
		}
	}
	return 0, 0
}

// tokenEnd returns the end of the run of token characters at i.
func tokenEnd(s string, i int) int {
	for i < len(s) && (isWord(s[i]) || s[i] == '-') {
		i++
	}
	return i
}

// credentials finds what follows "Bearer " or "Basic ".
func credentials(s string, i int) (from, to int) {
	for _, scheme := range [...]string{"bearer ", "basic "} {
		n := len(scheme)
		if len(s)-i <= n || s[i+n-1] != ' ' || !strings.EqualFold(s[i:i+n], scheme) {
			continue
		}
		j := i + n
		for j < len(s) && (isWord(s[j]) || strings.IndexByte("-._~+/=", s[j]) >= 0) {
			j++
		}
		// "basic usage" is no credential: those are long, or hold more than
		// letters.
		if v := s[i+n : j]; len(v) >= 20 || len(v) >= 8 && strings.ContainsAny(v, "0123456789=+/") {
			return i + n, j
		}
	}
	return 0, 0
}

// jwt measures a JSON Web Token: three parts of base64url, the last may be
// empty.
func jwt(s string, i int) int {
	j := tokenEnd(s, i)
	if j-i < 12 || j >= len(s) || s[j] != '.' {
		return 0
	}
	k := tokenEnd(s, j+1)
	if k-j < 8 {
		return 0
	}
	if k < len(s) && s[k] == '.' {
		k = tokenEnd(s, k+1)
	}
	return k
}

// privateKey measures a PEM block, or what there is of it.
func privateKey(s string, i int) int {
	head := s[i:min(len(s), i+64)]
	if !strings.Contains(head, "PRIVATE KEY-----") {
		return 0
	}
	end := strings.Index(s[i:], "-----END ")
	if end < 0 {
		return len(s)
	}
	i += end + len("-----END ")
	if n := strings.Index(s[i:], "-----"); n >= 0 && n < 64 {
		return i + n + 5
	}
	return i
}

// namedSecret looks at the name before the ":" or "=" at i, and finds its
// value, in quotes or not; or the password in scheme://user:password@host.
func namedSecret(s string, i, start int) (from, to int) {
	end := i
	for end > start && (s[end-1] == '"' || s[end-1] == '\'' || s[end-1] == ' ' || s[end-1] == '\\') && i-end < 4 {
		end--
	}
	j := end
	for j > start && end-j < 48 && (isWord(s[j-1]) || s[j-1] == '-') {
		j--
	}
	if s[i] == ':' && j > start+2 && s[j-1] == '/' && s[j-2] == '/' {
		return userinfo(s, i)
	}
	if !secretName(s[j:end]) {
		return 0, 0
	}
	return valueAt(s, i+1)
}

// userinfo finds the password after the colon at i, up to the "@".
func userinfo(s string, i int) (from, to int) {
	for j := i + 1; j < len(s) && j-i < 256; j++ {
		switch c := s[j]; {
		case c == '@':
			if j > i+1 {
				return i + 1, j
			}
			return 0, 0
		case c <= ' ' || c == '/' || c == '"':
			return 0, 0
		}
	}
	return 0, 0
}

// valueAt finds the value after a name and its ":" or "=".
func valueAt(s string, i int) (from, to int) {
	for i < len(s) && (s[i] == ' ' || s[i] == '=' || s[i] == '\\') {
		i++
	}
	if i >= len(s) {
		return 0, 0
	}
	if q := s[i]; q == '"' || q == '\'' || q == '`' {
		return i + 1, quoteEnd(s, i)
	}
	j := i
	for j < len(s) && s[j] > ' ' && strings.IndexByte(`"'&,;)}]<>`, s[j]) < 0 {
		j++
	}
	v := s[i:j]
	if strings.HasPrefix(v, Redacted[:len(Redacted)-1]) || v == "true" || v == "false" || v == "nil" || v == "null" || v == "<nil>" {
		return 0, 0
	}
	// "Authorization: Bearer x": the scheme is not the secret.
	if strings.EqualFold(v, "bearer") || strings.EqualFold(v, "basic") || strings.EqualFold(v, "token") || strings.EqualFold(v, "digest") {
		return valueAt(s, j)
	}
	return i, j
}

// quoteEnd finds the end of what the quote at i opens. If that quote is itself
// escaped, JSON inside of text, so is the closing one.
func quoteEnd(s string, i int) int {
	q, escaped := s[i], s[i-1] == '\\'
	for j := i + 1; j < len(s); j++ {
		switch {
		case s[j] == q:
			return j
		case s[j] == '\\' && escaped && j+1 < len(s) && s[j+1] == q:
			return j
		case s[j] == '\\':
			j++
		}
	}
	return len(s)
}

// secretWords name a secret at the end of a name, whatever stands before:
// db_password, X-Api-Key. Names are compared without separators and in lower
// case.
var secretWords = []string{
	"password", "passwd", "pwd", "passphrase", "secret", "token", "apikey", "accesskey", "secretkey", "privatekey",
	"secretaccesskey", "authorization", "credential", "credentials", "clientsecret", "sessionid", "cookie", "signature",
	"encryptionkey", "signingkey", "otp", "cvv", "cvc", "ssn",
}

// secretName tells whether a field of that name holds a secret.
func secretName(name string) bool {
	if len(name) < 3 {
		return false
	}
	words := wordsBy[name[len(name)-1]|0x20]
	if len(words) == 0 {
		return false
	}
	var buf [48]byte
	n := len(buf) // filled from the end, for the end counts
	for i := len(name) - 1; i >= 0 && n > 0; i-- {
		if c := name[i]; c != '_' && c != '-' && c != '.' {
			n--
			buf[n] = c | 0x20
		}
	}
	plain := buf[n:]
	for _, w := range words {
		if at := len(plain) - len(w); at >= 0 && plain[at] == w[0] && string(plain[at:]) == w {
			// Short words only as the whole name or after a separator.
			return len(w) > 3 || at == 0 || boundaryBefore(name, len(w))
		}
	}
	return false
}

// boundaryBefore tells whether a separator stands before the last n bytes.
func boundaryBefore(name string, n int) bool {
	i := len(name) - n - 1
	return i >= 0 && (name[i] == '_' || name[i] == '-' || name[i] == '.')
}

// wordsBy is secretWords by their last byte.
var wordsBy = func() (t [256][]string) {
	for _, w := range secretWords {
		t[w[len(w)-1]] = append(t[w[len(w)-1]], w)
	}
	return t
}()
