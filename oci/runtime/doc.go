// Package runtime turns runtime-spec specifications into what an engine runs.
//
// What it is. Compile makes the Plan of a container and CompileExec the Process of an exec, both for the native engine
// (package engine). Compiling is pure: nothing on the host is opened or asked. It is where a specification's strings
// become flags and numbers, so that the monitor, which is small, parses none.
//
// Other OCI runtimes are package external's.
//
// Terms. A plan is what the engine needs and nothing else; a specification is the runtime-spec's config.json.
//
// Errors. An UnsupportedError names the field and the value that the engine does not have. Nothing is left out silently:
// a specification that asks for what the engine lacks does not compile.
//
// Concurrency. All functions may be called at once.
package runtime
