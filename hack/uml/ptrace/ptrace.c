/*
 * ptrace(2) for linux.uml, preloaded. User-Mode Linux 6.1 reads and writes the floating-point state of its processes with a buffer of
 * 2696 bytes. Linux takes NT_X86_XSTATE only as a whole, EFAULT otherwise, and on a processor with AMX the whole has 11008 bytes: the
 * first process panics the kernel ("ptrace set fp regs failed, errno = 14"). So the state passes through a buffer that any processor's
 * fits in. What does not reach the emulator (the AMX tiles, which a process must ask for with arch_prctl(2)) is zero, its initial state.
 *
 * The guest's processes are processes of the host that the kernel traces: without a tracer they would go on as such, with system calls
 * of the host. So they are made to end with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PEEKTEXT = 1, PEEKUSER = 3, OLDSETOPTIONS = 21, SETOPTIONS = 0x4200, GETREGSET = 0x4204, SETREGSET = 0x4205 };
enum { XSTATE = 0x202, EXITKILL = 1 << 20 };

static unsigned char state[1 << 16] __attribute__((aligned(64)));

static long xstate(long request, int pid, struct iovec *caller) {
	struct iovec whole = {state, sizeof state};
	size_t n = caller->iov_len < sizeof state ? caller->iov_len : sizeof state;
	if (request == SETREGSET) {
		memcpy(state, caller->iov_base, n);
		memset(state + n, 0, sizeof state - n);
	}
	long r = syscall(SYS_ptrace, request, pid, XSTATE, &whole);
	if (r < 0)
		return r;
	if (whole.iov_len < n)
		n = whole.iov_len;
	if (request == GETREGSET)
		memcpy(caller->iov_base, state, n);
	caller->iov_len = n;
	return r;
}

long ptrace(long request, ...) {
	va_list list;
	va_start(list, request);
	int pid = va_arg(list, int);
	void *address = va_arg(list, void *), *data = va_arg(list, void *);
	va_end(list);
	if ((request == GETREGSET || request == SETREGSET) && (long)address == XSTATE)
		return xstate(request, pid, data);
	if (request == OLDSETOPTIONS || request == SETOPTIONS)
		data = (void *)((long)data | EXITKILL);
	if (request < PEEKTEXT || request > PEEKUSER)
		return syscall(SYS_ptrace, request, pid, address, data);
	long word; /* these three return what they read */
	if (syscall(SYS_ptrace, request, pid, address, &word) < 0)
		return -1;
	errno = 0;
	return word;
}
