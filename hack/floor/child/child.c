/*
 * The processes of the floor, by the name they are called:
 *   run ROOT                      become a default container in ROOT: mounts, devices, masks, new root, then execve of /bin/sleep
 *   enter PID CGROUP.PROCS...     join the cgroups and the namespaces of PID, drop capabilities, run /bin/true there, wait for it
 *   sleep, true                   what is run
 * Standard output of run is closed right before execve: whoever reads it knows that the container is up.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

static void must(int failed, const char *what)
{
	if (failed) {
		perror(what);
		_exit(3);
	}
}

static const struct { const char *type, *target, *options; unsigned long flags; } mounts[] = {
	{"proc", "proc", 0, 0},
	{"sysfs", "sys", 0, MS_RDONLY},
	{"tmpfs", "dev", "size=65536k,mode=755", 0},
	{"devpts", "dev/pts", "newinstance,ptmxmode=0666,mode=0620", 0},
	{"mqueue", "dev/mqueue", 0, 0},
	{"tmpfs", "dev/shm", 0, 0},
};
static const struct { const char *name; int major, minor; } devices[] = {
	{"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0},
};
static const char *files[] = {"etc/hosts", "etc/hostname", "etc/resolv.conf", "dev/termination-log"};
static const char *masked[] = {"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
	"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"};
static const char *readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};

static int run(const char *root)
{
	must(mount(0, "/", 0, MS_REC | MS_SLAVE, 0), "slave");
	must(chdir(root), root);
	for (size_t i = 0; i < COUNT(mounts); i++) {
		mkdir(mounts[i].target, 0755);
		must(mount(mounts[i].type, mounts[i].target, mounts[i].type, mounts[i].flags, mounts[i].options), mounts[i].target);
		if (i == 2)
			for (size_t d = 0; d < COUNT(devices); d++)
				must(mknod(devices[d].name, S_IFCHR | 0666, makedev(devices[d].major, devices[d].minor)), devices[d].name);
	}
	for (size_t i = 0; i < COUNT(files); i++) {
		close(open(files[i], O_CREAT | O_RDONLY, 0644));
		must(mount("/etc/hosts", files[i], 0, MS_BIND, 0), files[i]);
	}
	must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	must(umount2(".", MNT_DETACH), "umount");
	must(chdir("/"), "chdir");
	for (size_t i = 0; i < COUNT(masked); i++) {
		struct stat st;
		if (stat(masked[i], &st))
			continue;
		if (S_ISDIR(st.st_mode))
			must(mount("tmpfs", masked[i], "tmpfs", MS_RDONLY, 0), masked[i]);
		else
			must(mount("/dev/null", masked[i], 0, MS_BIND, 0), masked[i]);
	}
	for (size_t i = 0; i < COUNT(readonly); i++)
		if (!mount(readonly[i], readonly[i], 0, MS_BIND | MS_REC, 0))
			must(mount(0, readonly[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, 0), readonly[i]);
	close(1);
	execl("/bin/sleep", "sleep", (char *)0);
	must(1, "execve");
	return 3;
}

static int enter(int argc, char **argv)
{
	for (int i = 2; i < argc; i++) {
		int procs = open(argv[i], O_WRONLY);
		must(procs < 0 || write(procs, "0", 1) != 1, argv[i]);
		close(procs);
	}
	int pidfd = syscall(SYS_pidfd_open, atoi(argv[1]), 0), status;
	must(pidfd < 0 || setns(pidfd, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS), "setns");
	pid_t child = vfork();
	if (child == 0) {
		for (int cap = 14; cap < 41; cap++)
			prctl(PR_CAPBSET_DROP, cap);
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		execl("/bin/true", "true", (char *)0);
		_exit(4);
	}
	waitpid(child, &status, 0);
	return WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	const char *name = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
	if (!strcmp(name, "true"))
		return 0;
	if (!strcmp(name, "sleep")) {
		signal(SIGTERM, _exit);
		for (;;)
			pause();
	}
	if (!strcmp(name, "run") && argc == 2)
		return run(argv[1]);
	if (!strcmp(name, "enter") && argc > 2)
		return enter(argc, argv);
	return 64;
}
