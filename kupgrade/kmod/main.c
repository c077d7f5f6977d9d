// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/kspawn: the device, its rights and its calls. See uapi/kspawn.h.
 *
 * Mechanism only: which CPUs, memory and devices change hands, and when, is
 * decided by the programs that use this.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/cc_platform.h>
#include <linux/cpufeature.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <xen/xen.h>

#include "internal.h"

#if !defined(CONFIG_X86_64) || !defined(CONFIG_MEMORY_HOTPLUG)
#error "kspawn needs x86-64 and memory hotplug"
#endif

/* Everything that changes something; see internal.h. */
DEFINE_MUTEX(kspawn_lock);

/*
 * Asked at open and at each call: a descriptor must not carry root's power to
 * who inherits it. Starting a kernel is kexec by other means, so the lockdown
 * reason is that of kexec; where it says no, an unsigned build of this module
 * could not have been loaded either.
 */
static int kspawn_permitted(void)
{
	if (!capable(CAP_SYS_BOOT) || !capable(CAP_SYS_RAWIO))
		return -EPERM;
	return security_locked_down(LOCKDOWN_KEXEC);
}

static int kspawn_open(struct inode *inode, struct file *file)
{
	struct kspawn_file *kf;
	int ret = kspawn_permitted();

	if (ret)
		return ret;
	kf = kzalloc(sizeof(*kf), GFP_KERNEL);
	if (!kf)
		return -ENOMEM;
	kspawn_watch_open(kf);
	file->private_data = kf;
	return nonseekable_open(inode, file);
}

static int kspawn_release(struct inode *inode, struct file *file)
{
	struct kspawn_file *kf = file->private_data;

	mutex_lock(&kspawn_lock);
	kspawn_watch_release(kf);
	/* CPUs before devices: nobody may drive a device that is resumed. */
	kspawn_cpu_release(kf);
	kspawn_pci_release(kf);
	mutex_unlock(&kspawn_lock);
	kfree(kf);
	return 0;
}

static long kspawn_info(void __user *arg)
{
	struct kspawn_info info = {
		.abi_version = KSPAWN_ABI_VERSION,
		.capabilities = KSPAWN_CAP_LEAVE | KSPAWN_CAP_ACPI |
				KSPAWN_CAP_PCI | KSPAWN_CAP_PANIC_FLAG,
	};

	kspawn_cpu_info(&info);
	kspawn_leave_info(&info);
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

union kspawn_arg {
	struct kspawn_start start;
	struct kspawn_stop stop;
	struct kspawn_leave leave;
	struct kspawn_acpi acpi;
	struct kspawn_pci pci;
	struct kspawn_panic_flag panic_flag;
	struct kspawn_guard guard;
};

/* All that can be said about an argument without looking at the machine. */
static int kspawn_check(unsigned int cmd, const union kspawn_arg *a)
{
#define CLEAR(member) (!memchr_inv(&(member), 0, sizeof(member)))
	bool ok = false;

	switch (cmd) {
	case KSPAWN_START:
		ok = CLEAR(a->start.reserved) &&
		     !(a->start.flags & ~(KSPAWN_START_FOREIGN | KSPAWN_START_TIED |
					  KSPAWN_START_OWN)) &&
		     (a->start.flags & (KSPAWN_START_TIED | KSPAWN_START_OWN)) !=
			     (KSPAWN_START_TIED | KSPAWN_START_OWN);
		break;
	case KSPAWN_STOP:
		ok = CLEAR(a->stop.reserved) && !(a->stop.flags & ~KSPAWN_START_FOREIGN);
		break;
	case KSPAWN_LEAVE:
		ok = CLEAR(a->leave.reserved) && !a->leave.reserved0 &&
		     !(a->leave.flags & ~KSPAWN_LEAVE_ALL);
		break;
	case KSPAWN_ACPI:
		ok = CLEAR(a->acpi.reserved) && !a->acpi.flags;
		break;
	case KSPAWN_QUIESCE:
		ok = CLEAR(a->pci.reserved) && !a->pci.reserved0 && !a->pci.reserved1 &&
		     !(a->pci.flags & ~KSPAWN_PCI_KEEP);
		break;
	case KSPAWN_RESUME:
		ok = CLEAR(a->pci.reserved) && !a->pci.reserved0 && !a->pci.reserved1 &&
		     !a->pci.flags;
		break;
	case KSPAWN_PANIC_FLAG:
		ok = CLEAR(a->panic_flag.reserved) && !a->panic_flag.flags;
		break;
	case KSPAWN_GUARD:
		ok = CLEAR(a->guard.reserved) && !a->guard.reserved0 && !a->guard.flags;
		break;
	default:
		return -ENOTTY;
	}
	return ok ? 0 : -EINVAL;
#undef CLEAR
}

static int kspawn_do(struct kspawn_file *kf, unsigned int cmd, const union kspawn_arg *a)
{
	switch (cmd) {
	case KSPAWN_START:
		return kspawn_cpu_start(kf, &a->start);
	case KSPAWN_STOP:
		return kspawn_cpu_stop(&a->stop);
	case KSPAWN_LEAVE:
		return kspawn_leave(&a->leave);
	case KSPAWN_ACPI:
		return kspawn_acpi(&a->acpi);
	case KSPAWN_QUIESCE:
		return kspawn_pci_quiesce(kf, &a->pci);
	case KSPAWN_RESUME:
		return kspawn_pci_resume(&a->pci);
	case KSPAWN_PANIC_FLAG:
		return kspawn_panic_flag(kf, &a->panic_flag);
	case KSPAWN_GUARD:
		return kspawn_guard(kf, &a->guard);
	}
	return -ENOTTY;
}

static long kspawn_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	union kspawn_arg a = {};
	int ret;

	if (_IOC_TYPE(cmd) != KSPAWN_IOC)
		return -ENOTTY;
	ret = kspawn_permitted();
	if (ret)
		return ret;
	if (cmd == KSPAWN_INFO)
		return kspawn_info((void __user *)arg);
	if (!(file->f_mode & FMODE_WRITE))
		return -EBADF;
	if (_IOC_DIR(cmd) != _IOC_WRITE || _IOC_SIZE(cmd) > sizeof(a))
		return -ENOTTY;
	if (copy_from_user(&a, (void __user *)arg, _IOC_SIZE(cmd)))
		return -EFAULT;
	ret = kspawn_check(cmd, &a);
	if (ret)
		return ret;
	if (mutex_lock_killable(&kspawn_lock))
		return -EINTR;
	ret = kspawn_do(file->private_data, cmd, &a);
	mutex_unlock(&kspawn_lock);
	return ret;
}

static ssize_t kspawn_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct kspawn_file *kf = file->private_data;
	struct kspawn_event event;
	int ret;

	if (count < sizeof(event))
		return -EINVAL;
	while (!kspawn_guard_event(kf, &event)) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		ret = wait_event_interruptible(kf->wait, kspawn_guard_has_event(kf));
		if (ret)
			return ret;
	}
	return copy_to_user(buf, &event, sizeof(event)) ? -EFAULT : sizeof(event);
}

static __poll_t kspawn_poll(struct file *file, struct poll_table_struct *table)
{
	struct kspawn_file *kf = file->private_data;

	poll_wait(file, &kf->wait, table);
	return kspawn_guard_has_event(kf) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int kspawn_map(struct file *file, struct vm_area_struct *vma)
{
	int ret = kspawn_permitted();

	return ret ? ret : kspawn_mmap(file, vma);
}

static const struct file_operations kspawn_fops = {
	.owner = THIS_MODULE,
	.open = kspawn_open,
	.release = kspawn_release,
	.read = kspawn_read,
	.poll = kspawn_poll,
	.unlocked_ioctl = kspawn_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = kspawn_map,
};

static struct miscdevice kspawn_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kspawn",
	.fops = &kspawn_fops,
	.mode = 0600,
};

/* Where this cannot work, say so now. */
static int __init kspawn_supported(void)
{
	if (xen_pv_domain()) {
		pr_err("CPUs of a Xen PV guest have no local APIC of their own\n");
		return -ENODEV;
	}
	/* The other kernel would need our keys, and our trampoline their bit. */
	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT)) {
		pr_err("memory is encrypted (SME, SEV or TDX)\n");
		return -ENODEV;
	}
	if (!boot_cpu_has(X86_FEATURE_APIC)) {
		pr_err("no local APIC\n");
		return -ENODEV;
	}
	return 0;
}

static int __init kspawn_init(void)
{
	int ret = kspawn_supported();

	if (ret)
		return ret;
	ret = kspawn_leave_init();
	if (ret)
		return ret;
	ret = kspawn_mem_init();
	if (ret)
		goto leave;
	ret = kspawn_cpu_init();
	if (ret)
		goto mem;
	ret = kspawn_watch_init();
	if (ret)
		goto cpu;
	ret = misc_register(&kspawn_device);
	if (!ret)
		return 0;
	kspawn_watch_exit();
cpu:
	kspawn_cpu_exit();
mem:
	kspawn_mem_exit();
leave:
	kspawn_leave_exit();
	return ret;
}

static void __exit kspawn_exit(void)
{
	misc_deregister(&kspawn_device);
	kspawn_watch_exit();
	kspawn_cpu_exit();
	kspawn_mem_exit();
	kspawn_leave_exit();
}

module_init(kspawn_init);
module_exit(kspawn_exit);
MODULE_LICENSE("GPL");
MODULE_VERSION(KSPAWN_VERSION);
MODULE_DESCRIPTION("Starts another kernel on CPUs and memory that this one gave up");
