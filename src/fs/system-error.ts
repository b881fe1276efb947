export type SystemCode =
  | 'EACCES'
  | 'EAGAIN'
  | 'EBADF'
  | 'EDQUOT'
  | 'EEXIST'
  | 'EINTR'
  | 'EINVAL'
  | 'EIO'
  | 'EISDIR'
  | 'EMFILE'
  | 'ENFILE'
  | 'ENODEV'
  | 'ENOENT'
  | 'ENOSPC'
  | 'ENOTDIR'
  | 'ENOTEMPTY'
  | 'EROFS'

/** The codes that we make ourselves, with Linux's numbers and libuv's words for them. */
const KNOWN: Readonly<Record<SystemCode, readonly [number, string]>> = {
  EACCES: [13, 'permission denied'],
  EAGAIN: [11, 'resource temporarily unavailable'],
  EBADF: [9, 'bad file descriptor'],
  EDQUOT: [122, 'disk quota exceeded'],
  EEXIST: [17, 'file already exists'],
  EINTR: [4, 'interrupted system call'],
  EINVAL: [22, 'invalid argument'],
  EIO: [5, 'i/o error'],
  EISDIR: [21, 'illegal operation on a directory'],
  EMFILE: [24, 'too many open files'],
  ENFILE: [23, 'file table overflow'],
  ENODEV: [19, 'no such device'],
  ENOENT: [2, 'no such file or directory'],
  ENOSPC: [28, 'no space left on device'],
  ENOTDIR: [20, 'not a directory'],
  ENOTEMPTY: [39, 'directory not empty'],
  EROFS: [30, 'read-only file system'],
}

/** An error as Node's own file functions throw it: with `code`, `errno`, `syscall` and `path`. */
export function systemError(code: SystemCode, syscall: string, path: string): Error {
  const [number, words] = KNOWN[code]
  return Object.assign(new Error(`${code}: ${words}, ${syscall} '${path}'`), {
    code,
    errno: -number,
    syscall,
    path,
  })
}
