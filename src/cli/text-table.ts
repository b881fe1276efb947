import { escapeControls } from './record-format.ts'

export type Align = 'left' | 'right'

export interface Column {
  readonly name: string
  readonly align?: Align
}

/** Lines of a table whose columns are as wide as their widest cell. Cells may come from others: no control characters get through. */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
): string {
  const cells = rows.map((row) => row.map(escapeControls))
  const widths = columns.map((column, i) =>
    Math.max(column.name.length, ...cells.map((row) => row[i]?.length ?? 0)),
  )
  const line = (row: readonly string[]): string =>
    columns
      .map((column, i) => {
        const cell = row[i] ?? ''
        const width = widths[i] ?? 0
        if (column.align === 'right') return cell.padStart(width)
        return i === columns.length - 1 ? cell : cell.padEnd(width)
      })
      .join('  ')
      .trimEnd()
  return [line(columns.map((column) => column.name)), ...cells.map(line)].join('\n') + '\n'
}
