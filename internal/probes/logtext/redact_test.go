package logtext

import (
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/internal/probes/event"
)

// Tokens of well-known forms, put together here so that no scanner of secrets
// takes this file for a leak.
var (
	awsKey   = "AKIA" + "IOSFODNN7EXAMPLE"
	github   = "ghp" + "_" + strings.Repeat("aB3", 12)
	slack    = "xoxb" + "-123456789012-abcdefABCDEF"
	jwtText  = "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
	stripe   = "sk" + "_live_" + strings.Repeat("4eC39H", 4)
	google   = "AIza" + strings.Repeat("SyD-9", 7)
	pemBlock = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEow\nAAAA\n-----END RSA PRIVATE " + "KEY-----"
)

func TestRedact(t *testing.T) {
	r, err := NewRedactor(true, nil)
	if err != nil {
		t.Fatal(err)
	}
	const x = Redacted
	tests := []struct{ in, want string }{
		{"Authorization: Bearer abcDEF123.-_~+/=", "Authorization: Bearer " + x},
		{"sent bearer " + jwtText + ", ok", "sent bearer " + x + ", ok"},
		{"authorization=Basic dXNlcjpwYXNz and more", "authorization=Basic " + x + " and more"},
		{"a Basic dXNlcjpwYXNz9 b", "a Basic " + x + " b"},
		{"the basic usage of bearer bonds", ""},
		{"key " + awsKey + " used", "key " + x + " used"},
		{"AKIAshort", ""},
		{"x" + awsKey, ""},
		{"token is " + github, "token is " + x},
		{"slack " + slack + ".", "slack " + x + "."},
		{"jwt=" + jwtText + "&a=b", "jwt=" + x + "&a=b"},
		{"eyJust a word", ""},
		{"stripe " + stripe, "stripe " + x},
		{"google " + google + "abcdefgh", "google " + x},
		{"cert " + pemBlock + " end", "cert " + x + " end"},
		{"cut -----BEGIN PRIVATE " + "KEY-----\nMIIE", "cut " + x},
		{"-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----", ""},
		// Names of secrets.
		{"password=hunter2", "password=" + x},
		{"user=bob password=hunter2 host=db", "user=bob password=" + x + " host=db"},
		{"password: hunter2, next", "password: " + x + ", next"},
		{`{"db_password":"hunter2","a":1}`, `{"db_password":"` + x + `","a":1}`},
		{`{\"password\":\"hunter2\",\"a\":1}`, `{\"password\":\"` + x + `\",\"a\":1}`},
		{`X-Api-Key: 'abc def' x`, `X-Api-Key: '` + x + `' x`},
		{`secret := "a\"b" rest`, `secret := "` + x + `" rest`},
		{"AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "AWS_SECRET_ACCESS_KEY=" + x},
		{"GET /?token=abc&x=1", "GET /?token=" + x + "&x=1"},
		{"accessToken=abc refresh_token=def", "accessToken=" + x + " refresh_token=" + x},
		{"Cookie: a=b", "Cookie: " + x},
		{"otp=123456 laptop=5", "otp=" + x + " laptop=5"},
		{"tokens=5 tokenizer=x passwordless=true token=true", ""},
		{"error: password for user bob is wrong", ""},
		{"password=", ""},
		{"token: nil", ""},
		// URLs.
		{"dial postgres://bob:hunter2@db:5432/shop?x=1", "dial postgres://bob:" + x + "@db:5432/shop?x=1"},
		{"dial postgres://bob@db:5432/shop", ""},
		{"http://host:8080/a@b", ""},
		{"see https://example.com:443/", ""},
		// Cards.
		{"card 4111111111111111 ok", "card " + x + " ok"},
		{"card 4111 1111 1111 1111.", "card " + x + "."},
		{"card 4111-1111-1111-1111", "card " + x},
		{"amex 378282246310005", "amex " + x},
		{"mc 5555555555554444 2223003122003222", "mc " + x + " " + x},
		{"not valid 4111111111111112", ""},
		{"nanoseconds 1772600767123456789", ""},
		{"id 41111111111111110", ""},
		{"hex 4111111111111111a", ""},
		{"x4111111111111111", ""},
		{"0.4111111111111111", ""},
		{"mixed 4111-1111 1111-1111", ""},
		{"2026-03-04 05:06:07 4111", ""},
		{"", ""},
		{"ein Text mit äöü: nichts", ""},
	}
	for _, tt := range tests {
		want := tt.want
		if want == "" {
			want = tt.in
		}
		if got := r.Text(tt.in); got != want {
			t.Errorf("%q\n got %q\nwant %q", tt.in, got, want)
		}
		if again := r.Text(want); again != want {
			t.Errorf("%q again gives %q", want, again)
		}
	}
}

func TestRedactAttributes(t *testing.T) {
	r, err := NewRedactor(true, nil)
	if err != nil {
		t.Fatal(err)
	}
	l := event.Log{Body: "password=x", Attributes: []attribute.KeyValue{
		attribute.String("password", "hunter2"),
		attribute.Int("otp", 123456),
		attribute.Bool("token", true),
		attribute.String("text", "Bearer "+jwtText),
		attribute.Int64("number", 4111111111111111),
		attribute.Int64("time", 1772600767123456789),
		attribute.Map("nested", attribute.String("api_key", "abc"), attribute.Slice("list", attribute.StringValue("pwd=y"), attribute.Int64Value(5))),
		attribute.Map("secret", attribute.String("a", "b")),
	}}
	r.log(&l)
	const x = Redacted
	want := []string{x, x, "true", "Bearer " + x, x, "1772600767123456789", "", x}
	for i, kv := range l.Attributes {
		if got := kv.Value.String(); want[i] != "" && got != want[i] {
			t.Errorf("%s = %q, want %q", kv.Key, got, want[i])
		}
	}
	nested := showValue(l.Attributes[6].Value)
	if nested != `{api_key: "[redacted]", list: ["pwd=[redacted]", INT64 5]}` {
		t.Errorf("nested %s", nested)
	}
	if l.Body != "password="+x {
		t.Errorf("body %q", l.Body)
	}
}

func TestRedactPatterns(t *testing.T) {
	r, err := NewRedactor(false, []string{`ssn \d{3}-\d{2}-\d{4}`, `customer=(\w+)`})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Text("ssn 123-45-6789 customer=bob customer=eve password=x"); got != Redacted+" customer="+Redacted+" customer="+Redacted+" password=x" {
		t.Errorf("%q", got)
	}
	for _, bad := range [][]string{{"("}, {"a*"}, make([]string, maxPatterns+1)} {
		if _, err := NewRedactor(true, bad); err == nil {
			t.Errorf("%d patterns from %q accepted", len(bad), bad[0])
		}
	}
}

func FuzzRedact(f *testing.F) {
	for _, s := range []string{"password=x", awsKey, jwtText, pemBlock, "4111 1111 1111 1111", "a://b:c@d", `{\"token\":\"x\"}`} {
		f.Add(s)
	}
	r, err := NewRedactor(true, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := r.Text(s + " password=zqsecret ")
		if strings.Contains(got, "zqsecret") && !strings.Contains(s, "zqsecret") {
			t.Errorf("%q: %q", s, got)
		}
		if len(got) > (len(s)+20)*(len(Redacted)+1) {
			t.Errorf("%d bytes became %d", len(s), len(got))
		}
	})
}
