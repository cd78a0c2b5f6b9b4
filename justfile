# What is needed most of the Makefile, for those who prefer just.

_default:
    @make help

check:
    @make check

test:
    @make test

format:
    @make format
