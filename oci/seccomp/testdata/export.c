/* Makes a filter with libseccomp from rules on standard input and writes its program to standard output.
 *   default ACTION            ACTION is a SECCOMP_RET_ value in hex
 *   arch TOKEN                a SCMP_ARCH_ token in hex
 *   rule ACTION NAME [INDEX OP A B]...
 *   resolve TOKEN NAME        prints the call's number instead
 * A rule that the library refuses ends the program with its errno. */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
	char line[8192];
	scmp_filter_ctx ctx = NULL;
	while (fgets(line, sizeof line, stdin)) {
		char *word = strtok(line, " \n");
		if (!word) continue;
		if (!strcmp(word, "default")) {
			ctx = seccomp_init(strtoul(strtok(NULL, " \n"), NULL, 16));
			seccomp_attr_set(ctx, SCMP_FLTATR_CTL_NNP, 0);
		} else if (!strcmp(word, "arch")) {
			int rc = seccomp_arch_add(ctx, strtoul(strtok(NULL, " \n"), NULL, 16));
			if (rc && rc != -EEXIST) return -rc;
		} else if (!strcmp(word, "resolve")) {
			uint32_t token = strtoul(strtok(NULL, " \n"), NULL, 16);
			char *name = strtok(NULL, " \n");
			printf("%d\n", seccomp_syscall_resolve_name_arch(token, name));
		} else if (!strcmp(word, "rule")) {
			uint32_t action = strtoul(strtok(NULL, " \n"), NULL, 16);
			int nr = seccomp_syscall_resolve_name(strtok(NULL, " \n")), n = 0;
			struct scmp_arg_cmp cmp[6];
			char *index;
			if (nr == __NR_SCMP_ERROR) continue;
			while ((index = strtok(NULL, " \n"))) {
				cmp[n].arg = atoi(index);
				cmp[n].op = atoi(strtok(NULL, " \n"));
				cmp[n].datum_a = strtoull(strtok(NULL, " \n"), NULL, 16);
				cmp[n++].datum_b = strtoull(strtok(NULL, " \n"), NULL, 16);
			}
			int rc = seccomp_rule_add_array(ctx, action, nr, n, cmp);
			if (rc) return -rc;
		}
	}
	return ctx && seccomp_export_bpf(ctx, 1) ? 1 : 0;
}
