/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where a spawned kernel's CPUs wait: the reset vector of the ACPI MADT
 * Multiprocessor Wakeup Structure, version 1 (ACPI 6.6, 5.2.12.19).
 *
 * CPUs come here by START or LEAVE before their kernel wants them, and from that
 * kernel when it takes them offline or stops. They leave when their kernel writes
 * the mailbox, which is the page before this one:
 *
 *	mailbox + 0	u16 command	0 none, 1 wake up, 2 test
 *	mailbox + 4	u32 APIC id
 *	mailbox + 8	u64 wake-up vector
 *
 * Who copies this code to a page fills in, at the end of this file:
 *
 *	+ 0x200	u64	page table that maps all memory in use here to itself
 *	+ 0x208	u64	address of the table of slots, in that mapping
 *	+ 0x210	u32	number of slots
 *
 * and the slots, 64 bytes each, one for every CPU that may come:
 *
 *	+ 0	u32	APIC id (all 32 bits of an x2APIC id)
 *	+ 4	u32	1 while that CPU waits here, written by that CPU only
 *
 * A CPU without a slot waits as well, unseen. The code is independent of its
 * address, uses no stack, and touches only mailbox, parameters and its own slot.
 * Plain assembler, no preprocessor: as --64
 */
	.set	MAILBOX, -0x1000
	.set	COMMAND, MAILBOX
	.set	APIC_ID, MAILBOX + 4
	.set	VECTOR, MAILBOX + 8
	.set	WAKEUP, 1
	.set	TEST, 2
	.set	SLOT_SIZE, 64
	.set	SLOT_PARKED, 4

	.text
	.code64
park:
	cli
	cld
	lea	park(%rip), %r15
	mov	parameters(%rip), %rax
	mov	%rax, %cr3

	/* r14d: our APIC id. Leaf 0xb has all 32 bits; it is there if EBX is not 0. */
	xor	%eax, %eax
	cpuid
	cmp	$0xb, %eax
	jb	1f
	mov	$0xb, %eax
	xor	%ecx, %ecx
	cpuid
	mov	%edx, %r14d
	test	%ebx, %ebx
	jnz	2f
1:	mov	$1, %eax
	cpuid
	shr	$24, %ebx
	mov	%ebx, %r14d
2:
	/* r13: our slot, or 0 */
	mov	parameters + 8(%rip), %r13
	mov	parameters + 16(%rip), %ecx
3:	sub	$1, %ecx
	jb	4f
	cmp	%r14d, (%r13)
	je	5f
	add	$SLOT_SIZE, %r13
	jmp	3b
4:	xor	%r13d, %r13d
5:	test	%r13, %r13
	jz	wait
	movl	$1, SLOT_PARKED(%r13)

wait:
	pause
	movzwl	COMMAND(%r15), %eax
	test	%eax, %eax
	jz	wait
	cmp	%r14d, APIC_ID(%r15)
	jne	wait
	cmp	$WAKEUP, %eax
	je	wake
	cmp	$TEST, %eax
	jne	wait
	movw	$0, COMMAND(%r15)	/* "here I am": the kernel waits for this zero */
	jmp	wait

wake:
	mov	VECTOR(%r15), %rax
	test	%r13, %r13
	jz	6f
	movl	$0, SLOT_PARKED(%r13)
6:	/* Last: from the zero on the kernel may use the mailbox for another CPU. */
	movw	$0, COMMAND(%r15)
	jmp	*%rax

	.org	0x200, 0xcc
parameters:
	.quad	0			/* cr3 */
	.quad	0			/* slots */
	.long	0			/* number of slots */
	.long	0
