// Package keyfile reads configuration that stands in several TOML files by one table of keys.
//
// # Terms
//
// A key is a dotted name with a default, whose Go type (string, int64, bool, []string) is the type of its values, a text, and a setter. A part
// NAME of a key stands for any name: the key is there once for each name that the files have. Drop-ins of FILE are FILE.d/*.toml.
//
// # Reading
//
// Files are read in order; a later one wins key by key, tables are merged, lists are replaced. Everything that is wrong in any file is reported, also
// about a value that a later file replaces. A key whose default is empty means by an empty value what it means by none, and its setter is not called.
//
// # Errors
//
// Each is an *Error with file, line and key, several are joined. Rules over several keys name the key with At.
//
// # Texts
//
// Default writes a file with every key, Manual the same as a section of a manual page.
package keyfile
