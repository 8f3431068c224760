package apparmor

import "strings"

// Name is the default profile's.
const Name = "berth-default"

// abi is the set of rules that the profile is written for. Without it a newer parser takes what the profile does not mention for forbidden.
const abi = "abi/3.0"

// profile is in the language of apparmor.d(5). It includes nothing, as a host may lack every file below /etc/apparmor.d.
//
// attach_disconnected: descriptors come from outside the container (logs, volumes), and their paths end nowhere in it.
// mediate_deleted: a file that was removed stays the file that it was.
const profile = `profile NAME flags=(attach_disconnected,mediate_deleted) {
  # Files, sockets and capabilities as such: mounts, namespaces and the capabilities that were given draw that line.
  file,
  network,
  unix,
  capability,
  umount,

  # Containers signal and trace each other and nobody else. Who signals them from outside needs the right on its own side.
  signal (send) peer=NAME,
  signal (receive),
  ptrace (trace, read, tracedby, readby) peer=NAME,

  # No mounts, even with the capability.
  deny mount,
  deny pivot_root,

  # Of /proc a container writes what belongs to processes, and the limits of shared memory of its own ipc namespace.
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sysvipc/** w,
  deny /proc/sys/{[^k]*,k[^e]*}{,/**} w,
  deny /proc/sys/kernel/{[^s]*,s[^h]*}{,/**} w,
  deny /proc/{sysrq-trigger,kcore,kmem,mem} rwklx,

  # Of /sys it writes cgroups. Firmware, power readings and security modules it does not even read.
  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/fs/c[^g]*/** wkl,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`

// Profile is the default profile as apparmor_parser takes it.
func Profile() string { return strings.ReplaceAll(profile, "NAME", Name) }
