import { UsageError } from './usage-error.ts'
import { findNearest } from '../common/names.ts'
import type { NodeFileSystemOptions } from '../fs/node-file-system.ts'
import type { OperationName } from '../fs/operation.ts'

const OPERATIONS: readonly OperationName[] = [
  'open',
  'create',
  'openUncached',
  'read',
  'readUncached',
  'write',
  'sync',
  'truncate',
  'size',
  'close',
  'list',
  'makeDirectory',
  'rename',
  'remove',
  'removeTree',
  'findStat',
  'syncDirectory',
  'space',
]

interface Failpoint {
  readonly moment: 'before' | 'after'
  readonly operation: OperationName
  readonly action: string
  /** Only for paths that hold this text. */
  readonly path: string
  /** Fires at this call. */
  readonly nth: number
  calls: number
}

/** Errors that a disk can answer with. */
const ERRORS: ReadonlySet<string> = new Set(['EIO', 'ENOSPC', 'EDQUOT', 'EMFILE', 'EROFS'])

/**
 * Reads FAILPOINT, for crash tests of a real process: `after-write:kill`, `before-sync:EIO@3`, `after-rename(checkpoint):kill`, several with
 * commas. The action is `kill` (as kill -9) or an error for the operation to fail with; `@N` means at the Nth such call, `(text)` only for paths
 * that hold the text.
 * @throws UsageError when it makes no sense: a test that tests nothing must not pass
 */
export function parseFailpoints(text: string): NodeFileSystemOptions {
  const points = text.split(',').map((part) => parseFailpoint(part.trim()))
  const hook =
    (moment: Failpoint['moment']) =>
    (operation: OperationName, path: string): void => {
      for (const point of points) {
        if (point.moment !== moment || point.operation !== operation) continue
        if (!path.includes(point.path) || ++point.calls !== point.nth) continue
        fire(point, path)
      }
    }
  return { beforeOperation: hook('before'), afterOperation: hook('after') }
}

function parseFailpoint(text: string): Failpoint {
  const match = /^(before|after)-([A-Za-z]+)(?:\(([^)]*)\))?:([A-Za-z]+)(?:@(\d+))?$/.exec(text)
  const operation = OPERATIONS.find((name) => name === match?.[2])
  const action = match?.[4] ?? ''
  const isKnown = action === 'kill' || ERRORS.has(action)
  if (match === null || operation === undefined || !isKnown) {
    const nearest = findNearest(match?.[2] ?? '', OPERATIONS, 1)[0]
    throw new UsageError(
      `FAILPOINT ${text} makes no sense`,
      `write before-OPERATION or after-OPERATION, a colon, and kill or ${[...ERRORS].join(' or ')}, such as after-write:kill@100` +
        (nearest === undefined ? '' : `; did you mean ${nearest}?`),
    )
  }
  return {
    moment: match[1] === 'before' ? 'before' : 'after',
    operation,
    action,
    path: match[3] ?? '',
    nth: Number(match[5] ?? 1),
    calls: 0,
  }
}

function fire(point: Failpoint, path: string): void {
  if (point.action === 'kill') {
    process.kill(process.pid, 'SIGKILL')
    return
  }
  throw Object.assign(new Error(`${point.action}: failpoint, ${point.operation} '${path}'`), {
    code: point.action,
  })
}
