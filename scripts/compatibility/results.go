package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// known are the results of earlier parts of a run, in a file unless path is "".
type known struct {
	path    string
	results map[string]kept // by the name of the build
}

// kept is a result in the file.
type kept struct {
	Problems []string
	Absences [][2]string
	Sites    int
	Structs  int
	Fields   int
	Spans    int
}

func openResults(path string) (*known, error) {
	k := &known{path: path, results: map[string]kept{}}
	if path == "" {
		return k, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &k.results)
	}
	if err != nil {
		return nil, fmt.Errorf("read earlier results: %w", err)
	}
	return k, nil
}

// of returns the result of a build, if it is known and good: what failed is tried again.
func (k *known) of(b build) (result, bool) {
	text, ok := k.results[b.String()]
	r := result{build: b, structs: text.Structs, fields: text.Fields, spans: text.Spans, sites: make([]site, text.Sites)}
	for _, a := range text.Absences {
		r.absences = append(r.absences, absence{a[0], a[1]})
	}
	return r, ok && len(text.Problems) == 0
}

// needed tells whether a build is one that others, whose results are not known, are
// compared with.
func (k *known) needed(builds []build, i int) bool {
	for j, b := range builds[i+1:] {
		if b.release != builds[i].release || b.arch != builds[i].arch {
			break
		}
		compared := b.kind.stripped && j == 0 || b.kind.moves && builds[i].kind.name == kinds[0].name
		if _, ok := k.of(b); !ok && compared {
			return true
		}
	}
	return false
}

// add keeps a result, in the file at once.
func (k *known) add(r result) error {
	if k.path == "" {
		return nil
	}
	text := kept{Problems: r.problems, Sites: len(r.sites), Structs: r.structs, Fields: r.fields, Spans: r.spans}
	for _, a := range r.absences {
		text.Absences = append(text.Absences, [2]string{a.what, a.reason})
	}
	k.results[r.String()] = text
	data, err := json.MarshalIndent(k.results, "", "\t")
	if err != nil {
		return err
	}
	// Renamed, so that an interruption leaves the old or the new one.
	f, err := os.CreateTemp(filepath.Dir(k.path), ".results-*")
	if err != nil {
		return fmt.Errorf("keep results: %w", err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), k.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep results: %w", err), os.Remove(f.Name()))
	}
	return nil
}
