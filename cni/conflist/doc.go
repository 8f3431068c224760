// Package conflist reads the CNI configuration of a host: the first file by name in one folder that ends in .conflist, .conf or
// .json (Network Configuration Lists and Network Configurations, CNI spec section 1).
//
// A Folder is looked at when it is asked, so a change counts from the next call on, and the folder may come and go; nothing watches
// it. A file that cannot be used is an error that names it: a later file never takes its place, because pods would quietly get
// another network. While a file that was good is being rewritten, the last good contents serve for a few seconds.
//
// A file is at most 1 MiB, regular, without NUL, and names plugins by name, not by path (CVE-2021-20206).
//
// A Folder may be used from several goroutines.
package conflist
