package config

import (
	"reflect"
	"strings"
)

// reloadable are the settings that [Config.Merge] takes over: those that can change while
// the agent runs. A section stands for all that is in it.
var reloadable = []string{
	"targets", "traces", "metrics.max_series",
	"logs.level", "logs.rate", "logs.burst", "logs.redact", "agent.log_level",
}

// Reloadable tells whether a setting can change while the agent runs.
func Reloadable(key string) bool {
	for _, r := range reloadable {
		if key == r || strings.HasPrefix(key, r+".") {
			return true
		}
	}
	return false
}

// Changed lists the settings in which another Config differs, by their keys, in the order
// of the table. A token that was read from a file is not compared: it is read again when
// its file changes.
func (c *Config) Changed(other Config) []string {
	var keys []string
	for _, s := range Settings {
		if s.Key == "export.token" && c.Export.TokenFromFile && other.Export.TokenFromFile {
			continue
		}
		a, b := c.field(s.Key), other.field(s.Key)
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			keys = append(keys, s.Key)
		}
	}
	return keys
}

// Merge returns c with the settings of another Config that can change while the agent
// runs, and the keys of those that differ and cannot.
func (c *Config) Merge(other Config) (merged Config, later []string) {
	merged = *c
	for _, key := range c.Changed(other) {
		if !Reloadable(key) {
			later = append(later, key)
			continue
		}
		merged.field(key).Set(other.field(key))
	}
	return merged, later
}

// field is the place of a setting.
func (c *Config) field(key string) reflect.Value {
	v := reflect.ValueOf(c).Elem()
	for part := range strings.SplitSeq(key, ".") {
		v = fieldOf(v, part)
	}
	return v
}
