/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From a SIPI, or from this kernel's last instruction, to 64-bit code of
 * somebody else.
 *
 * kspawn_blob is copied into a page below 1 MiB and runs there. The pages after
 * it hold page tables that map the first 2 MiB to themselves (leave.c):
 *
 *	page + 0x1000	PML4	page + 0x2000	PDPT	page + 0x3000	PD
 *	page + 0x4000	bridge, the root table that LEAVE enters through
 *
 * EBX/RBX is the page's address throughout. Offsets are from kspawn_blob; the
 * words marked "+ page" get the address added when the blob is copied.
 */
#include <linux/linkage.h>
#include <asm/nospec-branch.h>

#define OFF(symbol)	(symbol - kspawn_blob)

#define BOOT_CODE32	0x08
#define BOOT_CODE64	0x10	/* also __KERNEL_CS, so CS needs no reload on the way in */
#define BOOT_DATA	0x18

#define CR0_REAL_EXIT	0x00000011	/* ET, PE: protected mode, caches on, no paging */
#define CR0_LONG	0x80000033	/* PG, NE, ET, MP, PE */
#define CR4_PAE		0x00000020
#define MSR_EFER	0xc0000080
/*
 * LME and NXE, all else off. NXE is needed: kernels woken through the ACPI
 * mailbox go on with the EFER they find, and their page tables have NX bits.
 */
#define EFER_LONG	0x00000900

	.section .rodata, "a"
	.balign 16
	.globl kspawn_blob, kspawn_blob_end, kspawn_blob_leave
	.globl kspawn_blob_gdtr, kspawn_blob_far32, kspawn_blob_far64, kspawn_blob_args

	.code16
kspawn_blob:
	/* SIPI: real mode, CS = page >> 4, IP = 0, paging and interrupts off */
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	movzwl	%ax, %ebx
	shll	$4, %ebx
	lgdtl	OFF(kspawn_blob_gdtr)
	movl	$CR0_REAL_EXIT, %eax
	movl	%eax, %cr0
	ljmpl	*OFF(kspawn_blob_far32)

	.code32
.Lprotected:
	/* LEAVE arrives with paging on; off is the only state in which LA57 can go */
	movl	$CR0_REAL_EXIT, %eax
	movl	%eax, %cr0
	movl	$BOOT_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movl	$CR4_PAE, %eax
	movl	%eax, %cr4
	leal	0x1000(%ebx), %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	movl	$EFER_LONG, %eax
	xorl	%edx, %edx
	wrmsr
	movl	$CR0_LONG, %eax
	movl	%eax, %cr0
	ljmpl	*OFF(kspawn_blob_far64)(%ebx)

	.code64
.Llong:
	movq	OFF(kspawn_blob_args)(%rbx), %rdx	/* rip */
	movq	(OFF(kspawn_blob_args) + 8)(%rbx), %rax	/* cr3 */
	movq	(OFF(kspawn_blob_args) + 16)(%rbx), %rsi
	/* The page is free for the next start from here on; keep the order. */
	movl	$1, (OFF(kspawn_blob_args) + 24)(%rbx)
	movq	%rax, %cr3		/* maps this page to itself, as was checked */
	jmp	*%rdx

kspawn_blob_leave:
	/* From kspawn_jump: long mode, this page mapped to itself by the bridge */
	lgdt	OFF(kspawn_blob_gdtr)(%rbx)
	ljmpl	*OFF(kspawn_blob_far32)(%rbx)

	.balign 8
.Lgdt:
	.quad	0
	.quad	0x00cf9b000000ffff	/* 0x08: code, 32 bits, flat */
	.quad	0x00af9b000000ffff	/* 0x10: code, 64 bits */
	.quad	0x00cf93000000ffff	/* 0x18: data, flat */
.Lgdt_end:
kspawn_blob_gdtr:
	.word	.Lgdt_end - .Lgdt - 1
	.long	OFF(.Lgdt)		/* + page */
	.long	0			/* upper half, read in long mode only */
	.balign 8
kspawn_blob_far32:
	.long	OFF(.Lprotected)	/* + page */
	.word	BOOT_CODE32, 0
kspawn_blob_far64:
	.long	OFF(.Llong)		/* + page */
	.word	BOOT_CODE64, 0
	.balign 8
kspawn_blob_args:
	.quad	0, 0, 0, 0		/* rip, cr3, rsi, taken */
kspawn_blob_end:

	.text
	.code64
/*
 * void kspawn_jump(unsigned long cr3, unsigned long cr4, unsigned long page,
 *		    unsigned long entry)
 *
 * The bridge maps this kernel's text and stack as before, and low memory to
 * itself. Dropping PGE in CR4 flushes what the TLB knew of the old tables.
 */
SYM_FUNC_START(kspawn_jump)
	movq	%rdi, %cr3
	movq	%rsi, %cr4
	movq	%rdx, %rbx
	ANNOTATE_RETPOLINE_SAFE
	jmp	*%rcx
SYM_FUNC_END(kspawn_jump)
