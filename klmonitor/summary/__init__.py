"""The mergeable sums. This package imports torch only through its submodules."""
