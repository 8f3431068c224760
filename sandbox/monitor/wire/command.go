package wire

import "github.com/berthd/berth/oci/runtime/engine/codec"

// Command has another OCI runtime make a process, by its command line. Without Args it is the engine that makes it.
type Command struct {
	Args    []string // the program's path first
	Folder  string   // the working directory
	PIDFile string   // where the program writes the ID of the process that it made
	Console string   // the socket on which it hands over the terminal's master; made by the monitor
	Then    []string // executed once the process is there, as Args; empty is nothing
	// InGroup tells that the last descriptor of a Start is the cgroup that the program runs in.
	InGroup bool
}

// Code writes or reads v.
func (v *Command) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.Strings(&v.Args)
		c.String(&v.Folder)
		c.String(&v.PIDFile)
		c.String(&v.Console)
		c.Strings(&v.Then)
		c.Bool(&v.InGroup)
	})
}
