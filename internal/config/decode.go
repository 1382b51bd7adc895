package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/v2"
)

// decode lays the merged layers over the defaults. It is strict: what does not
// fit the type of a setting, or has no setting, is an error.
func (l *loader) decode() {
	err := l.k.UnmarshalWithConf("", &l.cfg, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		ErrorUnused:      true,
		WeaklyTypedInput: true, // the environment has only strings
		DecodeHook:       mapstructure.ComposeDecodeHookFunc(durationHook, boolHook, textHook),
	}})
	for _, err := range flatten(err) {
		var de *mapstructure.DecodeError
		if !errors.As(err, &de) {
			l.fail("", "decode settings: %w", err)
			continue
		}
		s := settingOf(de.Name())
		if s == nil { // an element of a list: "targets.pids[0]"
			list, _, _ := strings.Cut(de.Name(), "[")
			s = settingOf(list)
		}
		if s == nil {
			l.fail(de.Name(), "%s has the wrong shape: see the table of settings", de.Name())
			continue
		}
		if !l.bad[s.Key] {
			l.fail(s.Key, "%s", l.cfg.complaint(s.Key, l.k.Get(strings.ReplaceAll(s.Key, ".", delim))))
		}
	}
}

// complaint is the one form of an error about a value: where it came from, what
// it is, what it must be. A secret's value is left out.
func (c *Config) complaint(key string, value any) string {
	s := byKey[key]
	switch {
	case key == "export.token" || key == "export.headers" || value == nil:
		return fmt.Sprintf("%s must be %s", c.label(key), s.Want)
	default:
		text := fmt.Sprint(value)
		if text == "" {
			text = "empty"
		}
		if len(text) > 100 {
			text = text[:100] + "…"
		}
		return fmt.Sprintf("%s is %s: it must be %s", c.label(key), text, s.Want)
	}
}

// label names a setting the way the user wrote it.
func (c *Config) label(key string) string {
	if o := c.origin[key]; o != "" {
		return o
	}
	return key
}

// flatten returns the leaves of joined errors.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if de, ok := err.(*mapstructure.DecodeError); ok { //nolint:errorlint // the tree is walked by hand
		if inner, ok := de.Unwrap().(interface{ Unwrap() []error }); ok {
			return flattenAll(inner.Unwrap())
		}
		return []error{err}
	}
	switch e := err.(type) { //nolint:errorlint // the tree is walked by hand
	case interface{ Unwrap() []error }:
		return flattenAll(e.Unwrap())
	case interface{ Unwrap() error }:
		if inner := e.Unwrap(); inner != nil {
			return flatten(inner)
		}
	}
	return []error{err}
}

func flattenAll(errs []error) []error {
	var out []error
	for _, err := range errs {
		out = append(out, flatten(err)...)
	}
	return out
}

var durationType = reflect.TypeFor[time.Duration]()

// durationHook reads "30s" and "off". A bare number is refused, because it
// would be read as nanoseconds by one person and as seconds by another.
func durationHook(_, to reflect.Type, data any) (any, error) {
	if to != durationType {
		return data, nil
	}
	switch v := data.(type) {
	case time.Duration:
		return v, nil
	case string:
		if strings.EqualFold(v, "off") {
			return time.Duration(0), nil
		}
		return time.ParseDuration(strings.TrimSpace(v))
	case bool: // YAML reads off as false
		if !v {
			return time.Duration(0), nil
		}
	case int:
		if v == 0 {
			return time.Duration(0), nil
		}
	}
	return nil, errors.New("not a duration")
}

// textHook feeds scalars to types that read themselves from text.
func textHook(_, to reflect.Type, data any) (any, error) {
	u, ok := reflect.New(to).Interface().(encoding.TextUnmarshaler)
	if !ok {
		return data, nil
	}
	switch v := data.(type) {
	case string, int, int64, uint64, float64, bool:
		if err := u.UnmarshalText([]byte(fmt.Sprint(v))); err != nil {
			return nil, err
		}
		return reflect.ValueOf(u).Elem().Interface(), nil
	}
	if reflect.TypeOf(data) == to {
		return data, nil
	}
	return nil, errors.New("not a text")
}

// boolHook reads what people write for yes and no, in the environment and in
// YAML. Other numbers than 0 and 1 are refused.
func boolHook(_, to reflect.Type, data any) (any, error) {
	if to.Kind() != reflect.Bool {
		return data, nil
	}
	switch strings.ToLower(strings.TrimSpace(fmt.Sprint(data))) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return nil, errors.New("not a boolean")
}
