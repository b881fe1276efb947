import { RE2JS, RE2JSException } from 're2js'
import { BrokerError } from '../../common/errors.ts'

const LONGEST_PATTERN = 1000

/**
 * Instructions of the compiled pattern, about one per letter, counted repeats written out. `[a-z]{1,100}` is 200. RE2 would let a thousand
 * letters grow to a million, half a second to compile.
 */
const LARGEST_PROGRAM = 1000

/**
 * Topics by a regular expression in RE2's syntax. The time to match is linear in the length of the name, whatever the pattern, which
 * JavaScript's own RegExp cannot promise; and patterns come from strangers.
 *
 * Usual patterns match 10 000 names of 40 letters in 1 to 40 ms. Linear is not always little: contrived ones near the limit, such as
 * `([ab].{0,13}){6}[.-]a$`, take 0.5 ms for one name of 40 letters, so whoever matches many names keeps the answers: neither a pattern nor a
 * name ever changes.
 */
export class TopicPattern {
  readonly text: string
  readonly #expression: RE2JS

  private constructor(text: string, expression: RE2JS) {
    this.text = text
    this.#expression = expression
  }

  /**
   * @param text 1 to 1 000 characters
   * @throws BrokerError INVALID_PATTERN that says what is wrong, and for what RE2 leaves out, what to do instead
   */
  static parse(text: string): TopicPattern {
    if (text.length === 0) throw invalid(text, 'is empty; `.*` finds every topic')
    if (text.length > LONGEST_PATTERN) {
      throw invalid(text, `has ${text.length} characters; the limit is ${LONGEST_PATTERN}`)
    }
    // The estimate before, so that compiling is cheap; the real size after, because the estimate is only that.
    if (estimateProgramSize(text) > LARGEST_PROGRAM * 2) throw tooLarge(text)
    const expression = compile(text)
    if (expression.programSize() > LARGEST_PROGRAM) throw tooLarge(text)
    return new TopicPattern(text, expression)
  }

  /** Whether the pattern is found anywhere in `name`, as `RegExp.test` has it. `^` and `$` tie it to the ends. */
  matches(name: string): boolean {
    return this.#expression.test(name)
  }
}

function compile(text: string): RE2JS {
  try {
    return RE2JS.compile(text)
  } catch (error) {
    if (!(error instanceof RE2JSException)) throw error
    const what = error.message.replace(/^error parsing regexp: /, '')
    throw invalid(text, `is not a regular expression: ${what}${adviseOn(text)}`, error)
  }
}

/** What RE2 leaves out because it cannot be had in linear time, and how to do without. */
function adviseOn(text: string): string {
  if (/\(\?<?[=!]/.test(text)) {
    return '; lookaheads and lookbehinds are not supported: match more topics and leave some out in the consumer, or list topics by name'
  }
  if (/\\[1-9]|\\k</.test(text)) {
    return '; backreferences are not supported: write the alternatives out, as in (a-a|b-b)'
  }
  if (/\(\?>|[*+?}]\+/.test(text)) {
    return '; atomic groups and possessive repeats are not supported, nor needed: matching never backtracks'
  }
  return ''
}

function tooLarge(text: string): BrokerError {
  const why = `repeats too much: with its counts written out it has more than ${LARGEST_PROGRAM} steps`
  return invalid(text, `${why}; say \`*\` or \`+\` instead of large counts`)
}

function invalid(text: string, why: string, cause?: unknown): BrokerError {
  const shown = text.length > 60 ? `${text.slice(0, 60)}…` : text
  return new BrokerError(
    'INVALID_PATTERN',
    `pattern ${JSON.stringify(shown)} ${why}`,
    { field: 'pattern', length: text.length, limit: LONGEST_PATTERN },
    cause,
  )
}

/**
 * Roughly how many instructions `text` compiles to, within a factor of two: letters, times the counts of the repeats around them. What is not
 * well formed the compiler refuses; here it only has to be counted.
 */
function estimateProgramSize(text: string): number {
  const count = /\{(\d+)(?:,(\d*))?\}/y
  const outer: number[] = []
  /** Of the group that we are in, and of the last thing in it, which a count after it repeats. */
  let size = 0
  let last = 0
  for (let at = 0; at < text.length;) {
    const letter = text[at]
    count.lastIndex = at
    const repeat = letter === '{' ? count.exec(text) : null
    if (repeat !== null) {
      const times = Math.max(1, Number(repeat[1]), Number(repeat[2] ?? 0))
      size += last * (times - 1)
      last *= times
      at += repeat[0].length
    } else if (letter === '(') {
      outer.push(size)
      size = 0
      last = 0
      at++
    } else if (letter === ')') {
      last = size + 2
      size = last + (outer.pop() ?? 0)
      at++
    } else if (text.startsWith('\\Q', at)) {
      // Taken literally up to \E, brackets too.
      const end = text.indexOf('\\E', at)
      last = 1
      size += (end < 0 ? text.length : end) - at
      at = end < 0 ? text.length : end + 2
    } else {
      size++
      last = 1
      at = letter === '[' ? findClassEnd(text, at) : at + (letter === '\\' ? 2 : 1)
    }
  }
  return size + outer.reduce((sum, part) => sum + part, 0)
}

/** One past the `]` that ends the class beginning at `start`. A `]` right at the beginning stands for itself. */
function findClassEnd(text: string, start: number): number {
  let at = text[start + 1] === '^' ? start + 3 : start + 2
  while (at < text.length && text[at] !== ']') at += text[at] === '\\' ? 2 : 1
  return at + 1
}
