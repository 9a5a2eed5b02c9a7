/* Prints the effective user id. Installed setuid root: with no_new_privs the bit has no effect. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %d\n", (int)geteuid());
	return 0;
}
