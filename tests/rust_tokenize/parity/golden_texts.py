"""Real text in many languages and kinds, each a few lines: written for this project, but for GSM8K's records.

The three records are the first of the test set of GSM8K (https://github.com/openai/grade-school-math, MIT licence,
copyright 2021 OpenAI).
"""

TEXTS = [
    (
        "Janet\u2019s ducks lay 16 eggs per day. She eats three for breakfast every morning and "
        "bakes muffins for her friends every day with four. She sells the remainder at the "
        "farmers' market daily for $2 per fresh duck egg. How much in dollars does she make "
        "every day at the farmers' market?"
    ),
    (
        "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.\nShe makes 9 * 2 = $<<9*2=18>>18 "
        "every day at the farmer\u2019s market.\n#### 18"
    ),
    (
        "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts "
        "in total does it take?"
    ),
    (
        "It takes 2/2=<<2/2=1>>1 bolt of white fiber\nSo the total amount of fabric is 2+1=<<2+1=3>>3 "
        "bolts of fabric\n#### 3"
    ),
    (
        "Josh decides to try flipping a house.  He buys a house for $80,000 and then puts "
        "in $50,000 in repairs.  This increased the value of the house by 150%.  How much "
        "profit did he make?"
    ),
    (
        "The cost of the house and repairs came out to 80,000+50,000=$<<80000+50000=130000>>130,000\nHe "
        "increased the value of the house by 80,000*1.5=<<80000*1.5=120000>>120,000\nSo the "
        "new value of the house is 120,000+80,000=$<<120000+80000=200000>>200,000\nSo he made "
        "a profit of 200,000-130,000=$<<200000-130000=70000>>70,000\n#### 70000"
    ),
    (
        "The lighthouse keeper's daughter didn't sleep; she'd counted 1,024 waves by midnight, "
        "and they'll say it wasn't enough. \u201cWe're late,\u201d he said\u2014\u201cI'm sure you've noticed.\u201d"
    ),
    (
        "# Notes\n\n* one item\n* another, with `code` and **bold**\n  1. nested\n\n| a | "
        "b |\n|---|---|\n| 1 | 2.5 |\n\n---\nSee https://example.org/path?q=1&r=%20x#top or "
        "mail a.b+c@example.org.\n"
    ),
    (
        'def mean(values: list[float]) -> float:\n    """Average, NaN for none."""\n    if '
        'not values:\n        return float("nan")\n    total = 0.0\n    for v in values:\n '
        '       total += v  # sum\n    return total / len(values)\n\n\nprint(f"{mean([1, 2, '
        '3.5]):.3f}")\n'
    ),
    (
        'fn main() {\n\tlet xs: Vec<u8> = (0..=255).collect();\r\n\tprintln!("{:?} {}", &xs[..4], '
        "xs.iter().map(|&x| u32::from(x)).sum::<u32>());\r\n}\r\n"
    ),
    (
        "SELECT name, COUNT(*) AS n FROM users WHERE age >= 18 AND country IN ('DE','FR') "
        "GROUP BY 1 ORDER BY n DESC LIMIT 10;"
    ),
    ('{"id": 17, "tags": ["a", "b\\n"], "score": -1.5e-3, "ok": true, "none": null}\n'),
    (
        "Der Stra\u00dfenbahnschaffner \u00fcberpr\u00fcfte die Fahrscheine; f\u00fcr Gr\u00f6\u00dfe 42 zahlte man 7,50 "
        "\u20ac. L'\u00e9t\u00e9 dernier, nous \u00e9tions \u00e0 l'\u00cele-d'Yeu. \u00bfQu\u00e9 ser\u00e1 de ma\u00f1ana?"
    ),
    (
        "Za\u017c\u00f3\u0142\u0107 g\u0119\u015bl\u0105 ja\u017a\u0144. P\u0159\u00edli\u0161 \u017elu\u0165ou\u010dk\u00fd k\u016f\u0148. \u0130stanbul'da ya\u011fmurlu bir g\u00fcn; \u0131l\u0131k r\u00fczg\u00e2r."
    ),
    (
        "\u0421\u0442\u0430\u0440\u044b\u0439 \u043c\u043e\u0441\u0442 \u0447\u0435\u0440\u0435\u0437 \u0440\u0435\u043a\u0443 \u0437\u0430\u043a\u0440\u044b\u043b\u0438 \u0432 1987 \u0433\u043e\u0434\u0443. \u0397 \u03b3\u03ac\u03c4\u03b1 \u03ba\u03bf\u03b9\u03bc\u03ac\u03c4\u03b1\u03b9."
    ),
    (
        "\u6628\u65e5\u306f\u96e8\u304c\u964d\u3063\u305f\u306e\u3067\u3001\u56f3\u66f8\u9928\u3067\u672c\u30923\u518a\u8aad\u307f\u307e\u3057\u305f\u3002\u30b3\u30fc\u30d2\u30fc\u306f\uff14\uff15\uff10\u5186\u3067\u3059\u3002"
    ),
    (
        "\u6211\u4eec\u660e\u5929\u4e0b\u53483\u70b945\u5206\u5728\u56fe\u4e66\u9986\u95e8\u53e3\u89c1\uff0c\u4e0d\u89c1\u4e0d\u6563\uff01\u4ef7\u683c\u662f\uffe51,299\u5143\u3002"
    ),
    (
        "\uc5b4\uc81c\ub294 \ube44\uac00 \uc640\uc11c \uc9d1\uc5d0\uc11c \ucc45\uc744 \uc77d\uc5c8\uc2b5\ub2c8\ub2e4. \uac00\uaca9\uc740 12,000\uc6d0\uc785\ub2c8\ub2e4."
    ),
    (
        "\u0643\u0627\u0646 \u0627\u0644\u0637\u0642\u0633 \u062c\u0645\u064a\u0644\u0627\u064b \u0641\u064a \u0661\u0662 \u0645\u0627\u064a\u0648. \u05d4\u05d9\u05dc\u05d3\u05d4 \u05e7\u05e8\u05d0\u05d4 \u05e1\u05e4\u05e8."
    ),
    (
        "\u0915\u0932 \u092c\u093e\u0930\u093f\u0936 \u0939\u0941\u0908 \u0925\u0940\u0964 \u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e2d\u0e32\u0e01\u0e32\u0e28\u0e14\u0e35 T\u00f4i th\u00edch \u0111\u1ecdc s\u00e1ch v\u00e0o bu\u1ed5i t\u1ed1i."
    ),
    ("cafe\u0301 nai\u0308ve A\u030angstro\u0308m \u212b \u2126 \uac00 \u1112\u1161\u11ab \u0958"),
    (
        "Great job!!! \U0001f389\U0001f389 \U0001f469\u200d\U0001f52c\U0001f468\U0001f3fd\u200d\U0001f33e \u2764\ufe0f \U0001f1ef\U0001f1f5 ^_^ \u00af\\_(\u30c4)_/\u00af"
    ),
    (
        "   leading, trailing   \n\n\n\t\tmixed \u00a0 blanks\u2003here\u3000and\u000bthere \r\n \r\n end"
    ),
    (
        "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n<s>[INST] hello [/INST]</s> "
        "<|endoftext|> <|user|> \n <mask>"
    ),
    (
        "x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}, \\quad \\forall \u03b5 > 0 \u2203 \u03b4: |x\u2212a| < \u03b4 \u21d2 f(x) "
        "\u2208 [0, 1)"
    ),
    (
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa 00000000000000000000 ---------------------------------------- "
        "........"
    ),
]
