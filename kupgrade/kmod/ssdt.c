// SPDX-License-Identifier: GPL-2.0
/* Loading an SSDT: how a running kernel is told of buses and memory it gets. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "internal.h"

static bool kspawn_is_ssdt(const struct acpi_table_header *table, u32 length)
{
	const u8 *byte = (const u8 *)table;
	u8 sum = 0;
	u32 i;

	if (memcmp(table->signature, ACPI_SIG_SSDT, ACPI_NAMESEG_SIZE) || table->length != length)
		return false;
	for (i = 0; i < length; i++)
		sum += byte[i];
	return sum == 0;
}

int kspawn_acpi(const struct kspawn_acpi *a)
{
	struct acpi_table_header *table;
	acpi_status status;

	if (acpi_disabled)
		return -EOPNOTSUPP;
	if (a->length < sizeof(*table) || a->length > KSPAWN_ACPI_MAX)
		return -EINVAL;
	table = memdup_user(u64_to_user_ptr(a->table), a->length);
	if (IS_ERR(table))
		return PTR_ERR(table);
	if (!kspawn_is_ssdt(table, a->length)) {
		kfree(table);
		return -EINVAL;
	}
	status = acpi_load_table(table, NULL);
	if (ACPI_FAILURE(status)) {
		pr_warn("SSDT refused: %s\n", acpi_format_exception(status));
		/*
		 * Not freed: the interpreter may have put part of it into the
		 * namespace before it stumbled, and refers to it from there.
		 */
		return -EIO;
	}
	return 0;	/* in use from now on */
}
