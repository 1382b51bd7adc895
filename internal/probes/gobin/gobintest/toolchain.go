package gobintest

import "runtime"

// Releases are the releases of Go that are tested, oldest first: the last patch of each.
var Releases = []string{
	"1.18.10", "1.19.13", "1.20.14", "1.21.13", "1.22.12", "1.23.12", "1.24.13", "1.25.14", "1.26.8", "1.27.4",
}

// Toolchain is the value of GOTOOLCHAIN for a release: "local" where it is the toolchain
// that this program was built with.
func Toolchain(release string) string {
	if "go"+release == runtime.Version() {
		return "local"
	}
	return "go" + release
}
