package config

import (
	"errors"
	"fmt"

	"github.com/knadh/koanf/v2"
)

const statusKey = "agent.status"

// StatusAddress is where an agent with these settings has its status server, "" if it has
// none. Whoever asks an agent that runs needs no more of its settings: the others may be
// wrong by now, or for the agent's eyes only.
func StatusAddress(src Sources) (string, error) {
	if src.Environ == nil {
		src.Environ = processEnviron()
	}
	l := loader{k: koanf.New(delim), cfg: Default()}
	l.cfg.origin = make(map[string]string)
	l.file(src.File)
	unread := l.bad[""]
	fileErr := errors.Join(l.errs...)
	l.environ(environ(src.Environ))
	l.flags(src.Flags)
	if unread && l.cfg.origin[statusKey] == "" {
		return "", fmt.Errorf("%w; name the agent's address with --status", fileErr)
	}
	l.decode()
	address := l.cfg.Agent.Status
	if l.bad[statusKey] || address != "" && !isHostPort(address) {
		return "", errors.New(l.cfg.complaint(statusKey, l.k.Get("agent"+delim+"status")))
	}
	return address, nil
}
