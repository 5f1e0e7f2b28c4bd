"""A real GRPO run on one CPU, small enough to watch: what ``klmonitor demo`` starts."""
