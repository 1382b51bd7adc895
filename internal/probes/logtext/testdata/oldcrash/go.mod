module oldcrash

go 1.18
