"""Cues: what a message says about the style that it wants.

A cue is a wish about the answer ("briefly, ...", "step by step"), and stands at an
edge of the message or beside a verb of telling. The same words inside a sentence
are mostly what the message is about: short sleeves, a love story, "why was I
charged", "a summary of my spending". In doubt no style is read.
"""

import re

_EDGE = r"(?:^|[.,:;!?\u2013\u2014-])\s*(?:and |but |so |now |just |please |kindly )*"
_ASK = r"(?:(?:can|could|would|will) you |please |pls |just |now |and |then |but )*"
_TELL = (
    r"\b(?:explain|describe|define|tell me|tell us|answer|say|put it|outline|respond"
    r"|reply|show me|what(?:'s| is| are)|how (?:do|does|can|would))\b"
)
_LAST = r"[\s.!?]*+$"  # Possessive: a run of stops is read once.
# "a summary", "a summary of DPO", but not "a summary of my purchases".
_NOT_MINE = (
    r"(?! (?:of|for|on|about|from) (?:(?:all )?(?:my|our|his|her|their|last|recent)"
    r"|the (?:last|past|account|order|bill|month|week|year))\b)(?! (?:report|page"
    r"|bill))"
)
_BRIEF = r"(?:briefly|concisely|succinctly|in short|in brief|in a nutshell)"
_ONE = (
    r"in (?:(?:just |only )?(?:one|a single|two|three|a few) (?:short |simple )?"
    r"(?:words?|lines?|sentences?)|a word)"
)
_MAKE_UP = (
    r"(?:story|poem|metaphor|analogy|haiku|limerick|rhyme|fairy ?tale|parable|riddle)"
)
_DETAIL = r"in (?:(?:more|full|great|greater|some|as much) )?(?:details?|depth)"

CONCISE = "|".join(
    (
        r"\btl;?dr\b",
        rf"^{_ASK}{_BRIEF}(?:\s*[,:\u2013\u2014-]|\s+(?:explain|describe|tell|what"
        rf"|how|why"
        r"|who|when|where|is|are|can|could|do|does)\b)",
        rf"[,;.\u2013\u2014-]\s*(?:please |but )?(?:{_BRIEF}|{_ONE})(?:"
        rf" please)?{_LAST}",
        rf"^{_ASK}{_ONE}(?:\s*+[,:])?\s++\w",
        rf"{_TELL}[^.?!]{{0,120}}\b(?:{_BRIEF}|{_ONE})(?:,? please)?{_LAST}",
        rf"^{_ASK}{_TELL}(?: (?:it|this|that|me|to me)){{0,2}} {_BRIEF}\b",
        rf"^\s*{_BRIEF}{_LAST}",
        r"\b(?:keep|make) (?:it|this|the answer|your (?:answer|reply))(?: very|"
        r" nice and"
        rf"| as)? (?:short|brief|concise)\b(?! (?:sleeved?|term|haired)){_NOT_MINE}",
        r"\b(?<!to )be (?:more |very )?(?:brief|concise|succinct)"
        rf"(?: please)?(?:{_LAST}|\s*[,:;.])",
        r"\b(?:give|just|only|please|want|need|like|prefer)\b[^.?!]{0,20}\b(?:short"
        r"|brief"
        r"|quick|concise|one[- ](?:line|sentence|word)) (?:answer|explanation|summary"
        rf"|reply|overview)\b{_NOT_MINE}",
        rf"^{_ASK}(?:a |the )?(?:short|brief|quick) (?:answer|version|summary)"
        rf"(?: please)?{_LAST}",
        r"\b(?:give|show|write|send) (?:me |us )?(?:just |only )?(?:a|the)"
        r" (?:summary|gist"
        rf"|rundown|short version|bottom line)\b{_NOT_MINE}",
        rf"^{_ASK}(?:summari[sz]e|sum up)\b(?! (?:my|our|all|last|the (?:last|past)))",
    )
)
CREATIVE = "|".join(
    (
        rf"{_EDGE}(?:be|get|feel free to be) (?:more |very |a (?:bit|little)"
        rf" (?:more )?)?"
        r"(?:creative|imaginative|playful|inventive|poetic)\b",
        r"\b(?:can|could|would) you be (?:more |a bit (?:more )?)?"
        r"(?:creative|imaginative|playful|poetic)\b",
        rf"(?:^{_ASK}|[,;]\s*)(?:creatively|playfully|imaginatively)(?:{_LAST}"
        rf"|\s*[,:])",
        rf"{_TELL}[^.?!]{{0,120}}\b(?:creatively|playfully){_LAST}",
        rf"\b(?:write|make up|invent|compose) (?:me |us )?(?:a|an|some) (?:[a-z]+"
        rf" ){{0,2}}"
        rf"{_MAKE_UP}\b",
        rf"^{_ASK}(?:tell|give) (?:me |us )?(?:a|an) (?:(?:short|little|funny|nice) )?"
        rf"{_MAKE_UP}\b",
        rf"{_TELL}[^.?!]{{0,80}}\b(?:with|using|as|like|in|through|by) (?:the form"
        rf" of )?"
        rf"(?:a |an )(?:[a-z]+ )?{_MAKE_UP}{_LAST}",
        rf"^{_ASK}(?:let(?:'s| us) |help me )?brainstorm\b(?! (?:app|session|meeting))",
        rf"^{_ASK}imagine (?:a|an|you(?:'re| are| were)|if)\b",
        r"\bthink(?:ing)? outside the box\b",
        r"\b(?:give|want|need|show|tell|have) (?:me |us )?(?:a |an |some |any"
        r" )?(?:more )?"
        r"(?:creative|imaginative|playful) (?:answer|ideas?|reply|suggestions?|spin"
        r"|take)\b",
    )
)
ANALYST = "|".join(
    (
        r"(?<!the )(?<!your )(?<!my )(?<!a )\bstep[- ]by[- ]step\b",
        rf"^{_ASK}{_DETAIL}\s*[,:]",
        rf"(?:{_TELL}|\b(?:walk|go|break))[^.?!]{{0,120}}(?<!email )\b{_DETAIL}"
        rf"(?:,? please|\s*[,;:]|{_LAST})",
        rf"^{_ASK}(?:explain|describe|tell me)(?: (?:it|this|that|me|to me)){{0,2}}"
        rf" {_DETAIL}\b",
        rf"[,;]\s*(?:please )?{_DETAIL}(?: please)?{_LAST}",
        r"\bwalk (?:me|us) through\b",
        r"\bbreak (?:it|this|that) down (?:for me|into|please)\b",
        r"\bpros and cons\b",
        r"\b(?:list|give|show|tell|number)(?: me| us)? (?:all )?the (?:exact "
        r"|single )?steps\b",
        r"\b(?:show|explain|give)(?: me)? (?:me )?your reasoning\b",
        r"\b(?:give|want|need|like|please)\b[^.?!]{0,12}\b(?:detailed|thorough"
        r"|in-depth) "
        r"(?:answer|explanation|analysis|reply|comparison)\b",
        rf"{_EDGE}be (?:more |very )?(?:analytical|thorough|systematic|precise)\b",
        rf"^{_ASK}analy[sz]e (?:the |this |that )?[a-z]+{_LAST}",
        r"\b(?:what are|list|explain|discuss|name) the trade-?offs\b",
    )
)

# A message without any of these matches no cue above.
_WORDS = (
    "brief concis succinct short nutshell word line sentence summar gist rundown quick "
    "creativ imagin playful inventive poetic brainstorm outside story poem metaphor "
    "analogy haiku limerick rhyme fairy parable riddle step detail depth walk break "
    "cons reasoning thorough analy systematic precise trade tldr tl;dr"
)
_HINTS = (*_WORDS.split(), "sum up")
_READ = 2000  # Characters at each end of a message that are read.
_APART = 200 * "\0"  # More than a cue can reach across.


def edges(message: str) -> str:
    """Where a wish can stand: the two ends of a long message, all of a short one.

    What lies between is a text that somebody pasted. Reading a cue takes about a
    microsecond for each character, and no message may hold up the others.
    """
    message = message.rstrip()
    if len(message) <= 2 * _READ:
        return message
    return f"{message[:_READ]}{_APART}{message[-_READ:]}"


def may_ask(message: str) -> bool:
    """Whether a built-in cue can match; false for most messages, and fast."""
    lowered = message.lower()
    return any(hint in lowered for hint in _HINTS)


# Wishes that a question can open or close with, and that are not searched for.
_WISH = (
    rf"(?:{_BRIEF}|{_ONE}|tl;?dr|step[- ]by[- ]step|{_DETAIL}|creatively"
    r"|(?:keep|make) it (?:short|brief)|be (?:brief|concise|creative))"
)
_FIRST = re.compile(
    rf"^\s*(?:please )?{_WISH}(?:\s*[,:;\u2013\u2014-]+\s*|\s+(?=(?:explain"
    rf"|describe|tell"
    r"|what|how|why|who|when|where|is|are|can|could|do|does)\b))",
    re.IGNORECASE,
)
_FINAL = re.compile(
    rf"(?:[,;:.\u2013\u2014-] ?(?:and |but |please )*{_WISH}"
    rf"|(?<= )(?:in short|in one line|step[- ]by[- ]step|{_DETAIL}|tl;?dr))"
    rf"(?:,? please)?{_LAST}",
    re.IGNORECASE,
)


def strip_cues(message: str) -> str:
    """The message without a wish about the style at its front or its end.

    Inside a sentence such a word may be what the message is about. A message that
    is nothing but a wish stays.
    """
    rest = _FINAL.sub("", _FIRST.sub("", message.rstrip())).strip(" ,;:")
    return rest if re.search(r"\w", rest) else message
