/*
 * Lets User-Mode Linux run on processors with AMX. Built by install-test-deps, preloaded into linux.uml by the tests.
 *
 * UML (6.1) keeps 2,696 bytes of extended register state of each of its processes and writes them back with
 * PTRACE_SETREGSET. Linux takes only the whole state (xstateregs_set answers EFAULT to less), which AMX's tiles make 11,008
 * bytes long, so UML dies at its first process: "ptrace set fp regs failed, errno = 14". Here a short write is laid over the
 * state that is there; the processes of a guest use no tiles, so what is added is their initial state.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define STATE_MAX 65536

static char state[STATE_MAX] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...)
{
	va_list list;
	va_start(list, request);
	pid_t pid = va_arg(list, pid_t);
	void *addr = va_arg(list, void *);
	void *data = va_arg(list, void *);
	va_end(list);
	/* The C library's ptrace, for what this file does not care about: it changes how PTRACE_PEEK* answers. */
	static long (*next)(enum __ptrace_request, ...);
	if (!next)
		next = (long (*)(enum __ptrace_request, ...))dlsym(RTLD_NEXT, "ptrace");
	long result = next(request, pid, addr, data);
	if (result == 0 || errno != EFAULT || request != PTRACE_SETREGSET || addr != (void *)NT_X86_XSTATE)
		return result;
	const struct iovec *given = data;
	struct iovec whole = { state, sizeof state };
	if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, addr, &whole) || given->iov_len > whole.iov_len)
		return -1;
	memcpy(state, given->iov_base, given->iov_len);
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, addr, &whole);
}
