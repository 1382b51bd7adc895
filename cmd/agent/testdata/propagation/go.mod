module propagation

go 1.22
