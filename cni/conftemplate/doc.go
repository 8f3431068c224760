// Package conftemplate makes a CNI configuration of a template and the pods' address ranges.
//
// Templates are those that containerd takes (conf_template): Go's text/template, with the fields PodCIDR (the first range), PodCIDRRanges and Routes
// (the default route of each family that has a range). What is known of the language is text, comments, fields, variables, if, else, range, with and trimming; no
// functions. The whole language would bring 3 MiB into every daemon, because the linker then keeps each method of each type.
package conftemplate
