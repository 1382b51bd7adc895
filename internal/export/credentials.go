package export

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/plainframework/agent/internal/config"
)

// tokenCheck is how often the token's file is looked at, at most, while there
// is something to send.
const tokenCheck = time.Second

// credentials make the headers of every attempt. A token that came from a file
// is read again when the file changes, so that it can be replaced without a
// restart.
type credentials struct {
	file string // of the token, if it may change
	say  *complaints

	mu      sync.Mutex
	headers http.Header
	fixed   []string // what must not be seen in a text, of headers and proxies
	tokens  []string // and of all tokens so far
	scrub   *strings.Replacer
	checked time.Time
	seen    fileState
}

// fileState is what changes when a file does.
type fileState struct {
	mod  time.Time
	size int64
	info os.FileInfo
}

func newCredentials(e config.Export, say *complaints) *credentials {
	c := &credentials{say: say, headers: make(http.Header)}
	for name, value := range e.Headers {
		c.headers.Set(name, value.Reveal())
		c.fixed = append(c.fixed, value.Reveal())
	}
	c.fixed = append(append(c.fixed, passwordsOf(e.Proxy.HTTP)...), passwordsOf(e.Proxy.HTTPS)...)
	if e.TokenFromFile {
		c.file = e.TokenFile // looked at once more before the first request: it may have changed since
	}
	c.headers.Set("User-Agent", "plain-agent")
	c.headers.Set("Content-Type", "application/x-protobuf")
	c.use(e.Token)
	return c
}

// passwordsOf is what a proxy may repeat of the credentials in its URL, in each way that
// they are written: as they are, as the URL has them, as the header that it gets has them.
func passwordsOf(proxy config.Secret) []string {
	u, err := url.Parse(proxy.Reveal())
	if err != nil || u.User == nil {
		return nil
	}
	password, _ := u.User.Password()
	_, escaped, _ := strings.Cut(u.User.String(), ":")
	return []string{base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password)), escaped, password}
}

// use makes a token the one to send. The caller holds mu, or is alone.
func (c *credentials) use(token config.Secret) {
	if token != "" {
		c.headers.Set("Authorization", "Bearer "+token.Reveal())
		c.tokens = append(c.tokens, token.Reveal())
	}
	const maxTokens = 64
	if n := len(c.tokens); n > maxTokens {
		c.tokens = c.tokens[n-maxTokens:]
	}
	var pairs []string
	for _, s := range append(slices.Clone(c.fixed), c.tokens...) {
		if s != "" {
			pairs = append(pairs, s, "[redacted]")
		}
	}
	c.scrub = strings.NewReplacer(pairs...)
}

// current returns the headers of an attempt that is made now.
func (c *credentials) current() http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != "" && time.Since(c.checked) >= tokenCheck {
		c.reload()
	}
	return c.headers.Clone()
}

// renewed says whether there is another token than the one in the headers of an
// attempt that was refused.
func (c *credentials) renewed(sent string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != "" {
		c.reload()
	}
	return c.headers.Get("Authorization") != sent
}

// reload reads the token again if the file has changed. A file that is gone or
// makes no sense changes nothing: it may be half written.
func (c *credentials) reload() {
	c.checked = time.Now()
	now := stateOf(c.file)
	if now.same(c.seen) {
		return
	}
	token, err := config.ReadToken(c.file)
	if err != nil {
		c.say.warn("token", "the token's file cannot be read again: the agent goes on with the token that it has", "file", c.file, "error", err)
		return
	}
	c.seen = now
	if c.headers.Get("Authorization") == "Bearer "+token.Reveal() {
		return
	}
	c.use(token)
	c.say.logger.Info("the token was read again", "file", c.file)
}

// redact takes the secrets out of a text that comes from outside, such as an
// endpoint that quotes the request in its answer.
func (c *credentials) redact(s string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.scrub.Replace(s)
}

func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{mod: info.ModTime(), size: info.Size(), info: info}
}

// same also tells a file from another that took its name within one tick of
// the clock.
func (s fileState) same(o fileState) bool {
	if s.info == nil || o.info == nil {
		return s.info == nil && o.info == nil
	}
	return s.mod.Equal(o.mod) && s.size == o.size && os.SameFile(s.info, o.info)
}
