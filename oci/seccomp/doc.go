// Package seccomp turns seccomp profiles into the programs that the kernel runs before each system call.
//
// A profile is a specs.LinuxSeccomp (runtime-spec config-linux.md#seccomp). Default makes the runtime's own profile, Load
// reads one from a file on the node, in the form of the runtime specification or in Docker's form with conditional rules,
// and Compile makes classic BPF of either: an array of struct sock_filter for seccomp(2), in the byte order of the host.
//
// # Rules
//
// A program decides as one made by libseccomp and installed by runc does:
//
//   - A call of an architecture that the profile does not list kills the process. The host's own architecture is always listed.
//   - Names that no architecture of the filter knows are skipped; UnknownSyscalls tells which.
//   - A rule whose action is the default action is skipped.
//   - A rule without arguments beats the rules with arguments of the same call; of several without, the first wins.
//   - The conditions of one rule must all hold, except that conditions on the same argument are alternatives.
//   - On 32-bit architectures only the low half of a value is compared.
//   - On x86 a rule for socket(2), msgget(2) and so on governs the call's form in socketcall(2) and ipc(2) as well.
//   - Calls with a number above all that the profile names get ENOSYS where the default action denies, so that a C library
//     falls back from calls that are newer than the profile.
//
// It differs from libseccomp in three points, each to the safe side. Where rules with arguments and different actions
// overlap, the most restrictive action wins; libseccomp refuses some of these and orders others as its tree falls. A rule
// that allows socket(2) for certain arguments does not allow all of socketcall's: it cannot look behind the pointer.
// And a foreign architecture kills the process, not the thread.
//
// # Files
//
// The package opens no file: profiles come in as bytes. The table of system call numbers, syscalls.txt, is part of the
// package and made by go generate.
//
// # Concurrency
//
// All functions may be called at once. Compile keeps its last results, by content, behind a mutex.
//
// # Errors
//
// Load returns *ProfileError, which names the field and the rule. Compile returns errors only for profiles that were not
// made by Default or Load, and for programs longer than the kernel takes.
package seccomp

//go:generate go run gentable.go
