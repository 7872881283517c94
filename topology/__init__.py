"""The tree as plain values: names, nodes, edges, the dispatch rule. No I/O, no clock, no broker."""
