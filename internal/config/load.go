package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/v2"
)

// delim separates the parts of a key inside koanf. It is not the dot, because
// metric names have dots and are keys of metrics.rename.
const delim = "/"

// Caps on what is read: both files are a person's, not data.
const (
	maxFile  = 1 << 20
	maxToken = 16 << 10
)

// Sources is where settings come from besides the defaults.
type Sources struct {
	File    string         // path of the YAML file, or "" for none
	Flags   map[string]any // by key of [Settings]; only the flags that were given
	Environ []string       // "NAME=value"; nil for the environment of this process
}

// Load reads the settings; a flag wins over the environment, that over the
// file, and that over the default. The OTEL_EXPORTER_OTLP_* and
// OTEL_TRACES_SAMPLER variables count only where nothing else is said. The
// error lists every problem, one a line, each with its remedy.
func Load(src Sources) (Config, error) {
	if src.Environ == nil {
		src.Environ = processEnviron()
	}
	env := environ(src.Environ)
	l := loader{
		k:   koanf.New(delim),
		cfg: Default(),
	}
	l.cfg.origin = make(map[string]string)
	l.file(src.File)
	l.environ(env)
	l.flags(src.Flags)
	l.otel(env)
	l.apiServer(env)
	l.decode()
	l.token()
	l.cfg.Export.Proxy = proxyOf(env)
	l.errs = append(l.errs, l.cfg.problems(l.bad)...)
	return l.cfg, errors.Join(l.errs...)
}

// processEnviron returns the environment that the process was started with, and
// takes out of it what libraries would read behind our back: the OpenTelemetry
// SDK lays OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME of its own process over
// every resource, so that the agent's would appear in its targets' telemetry.
// The token goes too: a child process has no business with it.
var processEnviron = sync.OnceValue(func() []string {
	env := os.Environ()
	for name := range environ(env) {
		if strings.HasPrefix(name, "OTEL_") || name == "PLAIN_CLOUD_EXPORT_TOKEN" {
			os.Unsetenv(name)
		}
	}
	return env
})

// loader carries the layers on their way into one Config.
type loader struct {
	k    *koanf.Koanf
	cfg  Config
	bad  map[string]bool // keys with an error already: not validated again
	errs []error
}

func (l *loader) fail(key, format string, args ...any) {
	if l.bad == nil {
		l.bad = make(map[string]bool)
	}
	l.bad[key] = true
	l.errs = append(l.errs, fmt.Errorf(format, args...))
}

// file loads the YAML file and names its unknown keys.
func (l *loader) file(path string) {
	if path == "" {
		return
	}
	data, err := readCapped(path, maxFile)
	if err != nil {
		l.fail("", "read config file: %w", err)
		return
	}
	fromFile := koanf.New(delim)
	if err := fromFile.Load(rawBytes(data), yaml.Parser()); err != nil {
		// The text of a type error quotes the file, which may be a token
		// given by mistake.
		if strings.Contains(err.Error(), "cannot unmarshal") {
			err = errors.New("it must be a map of settings")
		}
		l.fail("", "config file %s is not valid YAML: %w", path, err)
		return
	}
	for _, key := range fromFile.Keys() {
		dotted := strings.ReplaceAll(key, delim, ".")
		if settingOf(dotted) != nil {
			l.origin(dotted, fmt.Sprintf("%s in %s", dotted, path))
			continue
		}
		if fromFile.Get(key) == nil && isSection(dotted) {
			fromFile.Delete(key) // a section header with nothing under it
			continue
		}
		l.unknownKey(path, dotted)
		fromFile.Delete(key)
	}
	if err := l.k.Merge(fromFile); err != nil {
		l.fail("", "merge config file: %w", err)
	}
}

func (l *loader) unknownKey(path, key string) {
	known := make([]string, len(Settings))
	for i, s := range Settings {
		known[i] = s.Key
	}
	if near := nearest(key, known); near != "" {
		l.fail(key, "unknown key %s in %s: did you mean %s?", key, path, near)
		return
	}
	l.fail(key, "unknown key %s in %s: remove it, or look up its name in the table of settings", key, path)
}

// isSection says whether key is the beginning of a setting's key.
func isSection(key string) bool {
	return slices.ContainsFunc(Settings, func(s Setting) bool { return strings.HasPrefix(s.Key, key+".") })
}

// environ loads the PLAIN_ variables and those few OTEL_ ones that are the
// setting's own name. An empty variable is an unset one, as OpenTelemetry
// defines it, except for the status address, where empty means none.
func (l *loader) environ(env map[string]string) {
	var known []string
	for _, s := range Settings {
		if s.Env == "" {
			continue
		}
		known = append(known, s.Env)
		v, ok := env[s.Env]
		if !ok || v == "" && s.Key != "agent.status" {
			continue
		}
		if s.Env == "OTEL_METRIC_EXPORT_INTERVAL" {
			v += "ms"
		}
		l.set(s.Key, v, s.Env)
	}
	for name := range env {
		if strings.HasPrefix(name, "PLAIN_CLOUD_") && !slices.Contains(known, name) {
			if near := nearest(name, known); near != "" {
				l.cfg.Warnings = append(l.cfg.Warnings, fmt.Sprintf("unknown variable %s: did you mean %s?", name, near))
			}
		}
	}
	slices.Sort(l.cfg.Warnings)
}

func (l *loader) flags(flags map[string]any) {
	for _, key := range slices.Sorted(maps.Keys(flags)) {
		name := key
		if s := byKey[key]; s != nil {
			name = "--" + s.Flag
		}
		l.set(key, flags[key], name)
	}
}

// set puts one value into the top layer. Keys come from the table, so a key
// with another shape is a programming error that decode reports as unknown.
func (l *loader) set(key string, v any, origin string) {
	p := confmap.Provider(map[string]any{strings.ReplaceAll(key, ".", delim): v}, delim)
	if err := l.k.Load(p, nil); err != nil {
		l.fail(key, "load %s: %w", origin, err)
	}
	l.origin(key, origin)
}

func (l *loader) origin(key, origin string) {
	if s := settingOf(key); s != nil {
		l.cfg.origin[s.Key] = origin
	}
}

// isSet says whether any layer gave one of the keys a value.
func (l *loader) isSet(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { return l.cfg.origin[key] != "" })
}

// token reads the token file, where there is one and no token beside it.
func (l *loader) token() {
	e := &l.cfg.Export
	if e.Token != "" || e.TokenFile == "" {
		return
	}
	token, err := ReadToken(e.TokenFile)
	switch {
	case errors.Is(err, errEmptyToken):
		l.fail("export.token_file", "%s names %s, which is empty: put the token into it", l.cfg.label("export.token_file"), e.TokenFile)
	case errors.Is(err, errBadToken):
		// The value is checked like any other.
	case err != nil:
		l.fail("export.token_file", "%s: %w", l.cfg.label("export.token_file"), err)
		return
	}
	e.Token, e.TokenFromFile = token, true
	l.cfg.origin["export.token"] = "the token in " + e.TokenFile
}

var (
	errEmptyToken = errors.New("the file is empty")
	errBadToken   = errors.New("the file does not hold one line of printable characters")
)

// ReadToken reads a token from its file, now or when the file has changed. No
// error quotes what is in the file.
func ReadToken(path string) (Secret, error) {
	data, err := readCapped(path, maxToken)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	switch {
	case token == "":
		return "", errEmptyToken
	case !isHeaderValue(token):
		return Secret(token), errBadToken
	}
	return Secret(token), nil
}

func readCapped(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}

// Colour tells whether the environment ("NAME=value"; nil for that of this process) leaves
// colours to the terminal: NO_COLOR and a dumb TERM switch them off. It is no setting of the
// agent, but of the person's terminal.
func Colour(pairs []string) bool {
	if pairs == nil {
		pairs = processEnviron()
	}
	env := environ(pairs)
	return env["NO_COLOR"] == "" && env["TERM"] != "dumb"
}

// environ indexes "NAME=value" pairs; as in a shell, the last one counts.
func environ(pairs []string) map[string]string {
	m := make(map[string]string, len(pairs))
	for _, kv := range pairs {
		if name, v, ok := strings.Cut(kv, "="); ok {
			m[name] = v
		}
	}
	return m
}

// rawBytes is a koanf provider of a text that was read already.
type rawBytes []byte

func (b rawBytes) ReadBytes() ([]byte, error) { return b, nil }

func (b rawBytes) Read() (map[string]any, error) {
	return nil, errors.New("rawBytes needs a parser")
}
