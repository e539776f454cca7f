module sluice.dev/programs

go 1.19
