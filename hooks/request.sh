# Read by every hook with "." (POSIX sh). Records in /var/lib/kupgrade/pending that a package brought a kernel, or takes
# that back. Nothing else: kupgrade-request.path sees the file and acts on it by policy, after the transaction.
# Installed as /usr/lib/kupgrade/request.sh.
#
# A hook must never fail, ask, wait or say much. So every way out is exit 0; what could not be done is one line on stderr.
# Nothing of the arguments is ever executed, and no Python is started.
#
#   kupgrade_request add VERSION SOURCE       SOURCE: a word for the record, e.g. debian
#   kupgrade_request remove VERSION SOURCE
#
# KUPGRADE_ROOT: another root directory, as DPKG_ROOT.

LC_ALL=C # or [a-z] may match more than the letters meant
export LC_ALL

kupgrade_say() {
	printf 'kupgrade: %s\n' "$1" >&2 2>/dev/null || :
}

# What model/kernel.py takes for a kernel release. It is the name of a file below, and stands in JSON as it is.
kupgrade_release() {
	[ "${#1}" -le 63 ] || return 1
	case $1 in
	'' | [!0-9A-Za-z]* | *[!0-9A-Za-z._+~-]*) return 1 ;;
	esac
}

# A directory of root's alone, not a link to somewhere else. -O: owned by whoever runs this.
kupgrade_directory() {
	if [ ! -e "$1" ] && [ ! -L "$1" ]; then
		mkdir -p -m 0700 -- "$1" 2>/dev/null || return 1
	fi
	[ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]
}

kupgrade_add() {
	kupgrade_directory "$kupgrade_state" && kupgrade_directory "$kupgrade_state/pending" || {
		kupgrade_say "$1 is not noted: $kupgrade_state/pending cannot be made, or is not a directory of root's alone"
		return
	}
	# Written beside the directory that is watched, and moved in whole; -C: never through a link that somebody laid.
	kupgrade_new=$kupgrade_state/.request.$$
	rm -f -- "$kupgrade_new" 2>/dev/null
	(
		umask 077
		set -C
		printf '{"format":"kupgrade.request/1","release":"%s","source":"%s"}\n' "$1" "$2" >"$kupgrade_new"
	) 2>/dev/null && mv -f -- "$kupgrade_new" "$kupgrade_state/pending/$1.json" 2>/dev/null && return
	rm -f -- "$kupgrade_new" 2>/dev/null
	kupgrade_say "$1 is not noted: $kupgrade_state cannot be written to (full, or read-only?)"
}

kupgrade_remove() {
	kupgrade_file=$kupgrade_state/pending/$1.json
	if [ ! -e "$kupgrade_file" ] && [ ! -L "$kupgrade_file" ]; then
		return
	fi
	rm -f -- "$kupgrade_file" 2>/dev/null || kupgrade_say "the note of $1 cannot be taken back: $kupgrade_file"
}

kupgrade_request() {
	# An image that is being built, a chroot: no kernel runs there that could be replaced.
	[ -d "${KUPGRADE_ROOT:-}/run/systemd/system" ] || return 0
	# Nor where only /run is that of a host (arch-chroot, a rescue system): / is not the root of PID 1 there.
	[ -n "${KUPGRADE_ROOT:-}" ] || [ / -ef /proc/1/root ] || return 0
	kupgrade_state=${KUPGRADE_ROOT:-}/var/lib/kupgrade
	if ! kupgrade_release "${2:-}"; then
		kupgrade_say "not a kernel release, ignored"
		return 0
	fi
	if ! kupgrade_release "${3:-}"; then
		return 0
	fi
	case $1 in
	add) kupgrade_add "$2" "$3" ;;
	remove) kupgrade_remove "$2" ;;
	esac
	return 0
}
