package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// store holds Debian's packages of kernels and of QEMU, unpacked in a cache folder. APT
// works there with lists and sources of its own: nothing is installed, and the machine's
// own configuration stays as it is.
type store struct {
	dir      string
	codename string // of the Debian that this is
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// openStore makes the folder and brings the lists of packages up to date.
func openStore() (*store, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("find the cache folder: %w", err)
	}
	s := &store{dir: filepath.Join(cache, "plain-agent-kernels")}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, fmt.Errorf("find out which Debian this is: %w", err)
	}
	if m := regexp.MustCompile(`(?m)^VERSION_CODENAME=(\w+)$`).FindSubmatch(release); m != nil {
		s.codename = string(m[1])
	}
	if s.codename == "" || !exists(keyring) || !exists("/usr/bin/apt-get") {
		return nil, errors.New("kernels and QEMU are taken from Debian's packages: this needs a Debian (12 is what is tested), as its base image is")
	}
	for _, d := range []string{"apt/lists/partial", "apt/archives/partial", "kernels", "logs"} {
		if err := os.MkdirAll(filepath.Join(s.dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make cache folder: %w", err)
		}
	}
	return s, s.update()
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// update writes APT's configuration and has it read the lists, once a day.
func (s *store) update() error {
	main, security, err := mirrors(s.codename)
	if err != nil {
		return err
	}
	sources := ""
	add := func(mirror, suite string) {
		sources += fmt.Sprintf("deb [signed-by=%s] %s %s main\n", keyring, mirror, suite)
	}
	for _, suite := range []string{s.codename, s.codename + "-backports"} {
		add(main, suite)
	}
	own := sources
	for _, suite := range []string{"bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports"} {
		if !strings.Contains(sources, " "+suite+" ") {
			add(main, suite)
		}
	}
	add(security, "bullseye-security")
	apt := filepath.Join(s.dir, "apt")
	config := fmt.Sprintf(`Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
`, apt)
	for name, text := range map[string]string{"sources.list": sources, "own.list": own, "apt.conf": config, "status": ""} {
		if err := os.WriteFile(filepath.Join(apt, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("configure apt: %w", err)
		}
	}
	stamp := filepath.Join(apt, "updated")
	if st, err := os.Stat(stamp); err == nil && time.Since(st.ModTime()) < 24*time.Hour {
		return nil
	}
	if _, err := s.apt(apt, "apt-get", "-q", "update"); err != nil {
		return err
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// mirrors are where this machine gets its own packages and their security updates from.
func mirrors(codename string) (main, security string, err error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Identifier: Packages").Output()
	if err != nil {
		return "", "", fmt.Errorf("read apt's sources: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		release, uri, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch release {
		case codename:
			main = uri
		case codename + "-security":
			security = uri
		}
	}
	if main == "" || security == "" {
		return "", "", fmt.Errorf("apt's sources do not name %s and its security updates", codename)
	}
	return main, security, nil
}

// apt runs one of APT's programs in a folder, with the configuration of the store.
func (s *store) apt(dir, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(s.dir, "apt/apt.conf"), "LC_ALL=C")
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, args[0], err, lastLine(problem.String()))
	}
	return out.String(), nil
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// kernel is the image of the newest kernel of a row. An archive may list what it does not
// have any more, so the next older ones are tried too.
func (s *store) kernel(r row) (string, error) {
	out, err := s.apt(s.dir, "apt-cache", "search", "--names-only", "^linux-(image|binary)-.*-cloud-"+r.arch+"$")
	if err != nil {
		return "", err
	}
	var names []string
	for line := range strings.Lines(out) {
		if name, _, _ := strings.Cut(line, " "); r.kernels.MatchString(name) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return compareVersions(numberOf(b), numberOf(a)) })
	var errs []error
	for _, name := range names[:min(len(names), 12)] {
		image := filepath.Join(s.dir, "kernels", name)
		if exists(image) {
			return image, nil
		}
		if err := s.fetch(name+":"+r.arch, kernelPlace, image); err != nil {
			errs = append(errs, err)
			continue
		}
		return image, nil
	}
	return "", fmt.Errorf("no kernel %s to be had: %w", r, errors.Join(errs...))
}

func numberOf(name string) string {
	return strings.TrimPrefix(strings.TrimPrefix(name, "linux-image-"), "linux-binary-")
}

var versionPart = regexp.MustCompile(`\d+|\D+`)

// compareVersions compares numbers as numbers, and what is between them as text.
func compareVersions(a, b string) int {
	as, bs := versionPart.FindAllString(a, -1), versionPart.FindAllString(b, -1)
	return slices.CompareFunc(as, bs, func(x, y string) int {
		if x[0] <= '9' && y[0] <= '9' && len(x) != len(y) {
			return len(x) - len(y)
		}
		return strings.Compare(x, y)
	})
}

// Where packages have a kernel's image and the dynamic loader; it depends on their age.
var (
	kernelPlace = regexp.MustCompile(`^\./(boot/vmlinuz-[^/]+|usr/lib/modules/[^/]+/vmlinuz)$`)
	loaderPlace = regexp.MustCompile(`^\./(usr/)?lib/[^/]+/ld-linux-[^/]+\.so\.[12]$`)
)

// loader is the dynamic loader of an architecture.
func (s *store) loader(arch string) (string, error) {
	to := filepath.Join(s.dir, "loader-"+arch)
	if exists(to) {
		return to, nil
	}
	return to, s.fetch("libc6:"+arch, loaderPlace, to)
}

// fetch downloads a package and takes one file out of it.
func (s *store) fetch(name string, place *regexp.Regexp, to string) error {
	dir, err := os.MkdirTemp(s.dir, "download")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if _, err := s.apt(dir, "apt-get", "-q", "download", name); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("download of %s: %d files", name, len(found))
	}
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", found[0])
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	err = extract(bufio.NewReaderSize(pipe, 1<<20), place, filepath.Join(dir, "file"))
	_ = cmd.Process.Kill() // the rest is not needed
	_ = cmd.Wait()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", name, err)
	}
	return os.Rename(filepath.Join(dir, "file"), to)
}

// extract writes the first file of an archive that has such a name.
func extract(r io.Reader, place *regexp.Regexp, to string) error {
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err != nil {
			return fmt.Errorf("find a file like %s: %w", place, err)
		}
		if h.Typeflag != tar.TypeReg || !place.MatchString(h.Name) {
			continue
		}
		f, err := os.Create(to)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, in)
		return errors.Join(err, f.Close())
	}
}

// qemu is the folder of an unpacked QEMU, from the backports: version 7.2 of Debian 12
// crashes some guests. What it needs and this machine has not is unpacked with it.
func (s *store) qemu() (string, error) {
	to := filepath.Join(s.dir, "qemu-"+s.codename)
	if exists(to) {
		return to, nil
	}
	dir, err := os.MkdirTemp(s.dir, "download")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(filepath.Join(dir, "debs/partial"), 0o755); err != nil {
		return "", err
	}
	_, err = s.apt(dir, "apt-get", "-q", "-y", "install", "--download-only", "--no-install-recommends",
		"-o", "Dir::Etc::sourcelist="+filepath.Join(s.dir, "apt/own.list"), "-o", "Dir::State::status=/var/lib/dpkg/status",
		"-o", "Dir::Cache::archives="+filepath.Join(dir, "debs"), "-o", "APT::Architectures=amd64",
		"-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "-o", "Debug::NoLocking=true",
		"-t", s.codename+"-backports", "qemu-system-x86", "qemu-system-arm")
	if err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "debs/*.deb"))
	if err != nil || len(debs) == 0 {
		return "", errors.New("download of QEMU: no package; if QEMU is installed here, it is to be removed, for this takes its own")
	}
	for _, deb := range debs {
		if _, err := s.apt(dir, "dpkg-deb", "-x", deb, filepath.Join(dir, "root")); err != nil {
			return "", err
		}
	}
	return to, os.Rename(filepath.Join(dir, "root"), to)
}
