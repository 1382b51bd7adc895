package config

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// otel applies the OpenTelemetry variables where the Plain settings say
// nothing.
func (l *loader) otel(env map[string]string) {
	l.otelSampler(env)
	// All or nothing: a token is never sent to an endpoint that was meant
	// for something else.
	if l.isSet("export.url", "export.token", "export.token_file") {
		return
	}
	l.otelEndpoints(env)
	if !l.cfg.Export.Foreign {
		return
	}
	l.otelHeaders(env["OTEL_EXPORTER_OTLP_HEADERS"])
	if v := env["OTEL_EXPORTER_OTLP_TIMEOUT"]; v != "" && !l.isSet("export.timeout") {
		l.set("export.timeout", v+"ms", "OTEL_EXPORTER_OTLP_TIMEOUT")
	}
	if v := env["OTEL_EXPORTER_OTLP_COMPRESSION"]; v != "" && !l.isSet("export.compression") {
		l.set("export.compression", v, "OTEL_EXPORTER_OTLP_COMPRESSION")
	}
	for name, key := range map[string]string{
		"OTEL_EXPORTER_OTLP_CERTIFICATE":        "export.ca_file",
		"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "export.cert_file",
		"OTEL_EXPORTER_OTLP_CLIENT_KEY":         "export.key_file",
	} {
		if v := env[name]; v != "" && !l.isSet(key) {
			l.set(key, v, name)
		}
	}
	if v := env["OTEL_EXPORTER_OTLP_PROTOCOL"]; v != "" && v != "http/protobuf" {
		l.fail("", "OTEL_EXPORTER_OTLP_PROTOCOL is %s: the agent speaks http/protobuf; set that, and an endpoint that takes it (often port 4318)", v)
	}
}

// otelEndpoints takes the base endpoint and those of single signals. A signal
// without one of its own needs the base.
func (l *loader) otelEndpoints(env map[string]string) {
	base := env["OTEL_EXPORTER_OTLP_ENDPOINT"]
	if base != "" {
		l.cfg.Export.Foreign = true
		l.set("export.url", base, "OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	var missing []string
	for _, signal := range []string{"traces", "metrics", "logs"} {
		name := "OTEL_EXPORTER_OTLP_" + strings.ToUpper(signal) + "_ENDPOINT"
		key := "export." + signal + "_url"
		switch v := env[name]; {
		case l.isSet(key):
		case v != "":
			l.cfg.Export.Foreign = true
			l.set(key, v, name)
		case base == "":
			missing = append(missing, name)
		}
	}
	if l.cfg.Export.Foreign && len(missing) > 0 {
		l.fail("export.url", "set OTEL_EXPORTER_OTLP_ENDPOINT, or %s too: without a token of Plain Cloud those signals have nowhere to go",
			strings.Join(missing, " and "))
	}
}

// otelHeaders reads "a=b,c=d" with percent-encoded values. The text may hold
// credentials, so that no error quotes it.
func (l *loader) otelHeaders(list string) {
	if list == "" || l.isSet("export.headers") {
		return
	}
	const name = "OTEL_EXPORTER_OTLP_HEADERS"
	headers := make(map[string]any)
	for pair := range strings.SplitSeq(list, ",") {
		k, v, ok := strings.Cut(pair, "=")
		v, err := url.PathUnescape(v)
		if !ok || err != nil {
			l.fail("export.headers", "%s has an entry that is not name=value with a percent-encoded value", name)
			return
		}
		headers[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	l.set("export.headers", headers, name)
}

// otelSampler maps OTEL_TRACES_SAMPLER to the sampler and rate that decide
// alike.
func (l *loader) otelSampler(env map[string]string) {
	const name = "OTEL_TRACES_SAMPLER"
	sampler := env[name]
	if sampler == "" || l.isSet("traces.sampler", "traces.sample_rate") {
		return
	}
	kind, base := SamplerRatio, sampler
	if b, ok := strings.CutPrefix(sampler, "parentbased_"); ok {
		kind, base = SamplerParentRatio, b
	}
	rate := 1.0
	switch base {
	case "always_on":
	case "always_off":
		rate = 0
	case "traceidratio":
		if arg := env["OTEL_TRACES_SAMPLER_ARG"]; arg != "" {
			r, err := strconv.ParseFloat(arg, 64)
			if err != nil || !(r >= 0 && r <= 1) {
				l.fail("traces.sample_rate", "OTEL_TRACES_SAMPLER_ARG is %s: it must be a number from 0 to 1", arg)
				return
			}
			rate = r
		}
	default:
		l.cfg.Warnings = append(l.cfg.Warnings, fmt.Sprintf("%s=%s is not supported here: set PLAIN_CLOUD_TRACE_SAMPLER instead", name, sampler))
		return
	}
	l.set("traces.sampler", kind, name)
	l.set("traces.sample_rate", rate, name)
}

// proxyOf collects the proxy variables, upper case first as net/http does.
func proxyOf(env map[string]string) Proxy {
	get := func(name string) string {
		if v := env[name]; v != "" {
			return v
		}
		return env[strings.ToLower(name)]
	}
	return Proxy{HTTP: Secret(get("HTTP_PROXY")), HTTPS: Secret(get("HTTPS_PROXY")), NoProxy: get("NO_PROXY")}
}
