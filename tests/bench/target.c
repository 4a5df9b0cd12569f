/* Executed in QEMU's place: linked statically, it ends at once. */
int main(void)
{
	return 0;
}
