// Package nri lets plugins of the node change containers, by the Node Resource Interface (github.com/containerd/nri).
//
// # What it is
//
// A plugin is a process that connects to a socket, or that the daemon starts from a folder. It registers with a name and an index, is told of
// all sandboxes and containers that there are (synchronization), and from then on of what happens to them, plugins with a lower index first. It
// may change the specification of a container that is being created (adjustment) and the limits of others (update), have containers stopped
// (eviction), and refuse what other plugins adjusted (validation). Two plugins that change the same thing of a container refuse it.
//
// # What is adjusted
//
// All of an adjustment is applied to the specification, or the container is refused with an error that names what cannot be: nothing is left out
// silently. Limits that a request can set count as if the request had set them, so that later updates start from them.
//
// # Files
//
//	STATE/nri.sock         where plugins connect
//	/opt/nri/plugins       programs IDX-NAME that are started with the daemon; others are left out
//	STATE/nri.plugins      links to those that can be, when there are others, while they are started
//	/etc/nri/conf.d        their configuration, IDX-NAME.conf or NAME.conf
//
// # Time
//
// Without a plugin a call costs a lock that nobody waits for. A plugin that registers or answers late, or that dies, is dropped after its time is
// up, and what waited for it goes on; a plugin may ask the library to treat it otherwise. Requests to plugins are made one after the other.
//
// # Concurrency
//
// All methods may be called at once. A plugin that joins is synchronized while nobody is between Enter and leave; so what is created there is
// either among what the plugin is told of at first, or is told by itself. Nothing else may be waited for between the two.
//
// # Errors
//
// What a plugin answers, as text. UnsupportedError for an adjustment that cannot be applied.
package nri
