"""The languages that documents can be told apart by: their scripts, and small lists of their function words.

Function words are the commonest words of a language, of which every text in it is full.

    uv run python -c "from shared_data.cleaning.word_lists import LANGUAGES; print(LANGUAGES)"
"""

# The eight words of Gopher's stop-word filter (Rae et al. 2021, appendix A.1.1): English prose has at least two of them.
GOPHER_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})

# English: a third to a half of all running words of prose, and few of other languages'.
_ENGLISH = """
the a an this that these those and or but so if because when while as than then
i you he she it we they me him her us them my your his its our their who what which
is am are was were be been being do does did have has had will would can could shall should may might must
to of in on at by for from with about into over under after before between through up down out off again
not no yes all some any each every both few more most other such only own same too very just also there here
where why how
"""
ENGLISH_FUNCTION_WORDS = frozenset(_ENGLISH.split())

# Of languages that share their script with others, a fifth to a half of all running words.
_OTHERS = {
    "de": "der die das den dem des ein eine einen einem einer und oder aber auch nicht ist sind war waren wird hat haben ich du er "
    "sie es wir ihr sich mit von zu zum zur im in am an auf aus bei für nach über um vor wenn dass als wie so noch nur schon seine ihre",
    "fr": "le la les l un une des de du d et ou mais ne pas que qui quoi ce cette ces se s son sa ses est sont était il elle ils "
    "elles je tu nous vous on dans en sur sous avec pour par au aux plus très c n qu leur leurs lui y a ont sans comme tout",
    "es": "el la los las un una unos unas de del y o pero no que quien se su sus es son era fue está en a al con por para como más muy "
    "lo le les me te nos mi tu yo él ella ellos ha han sin sobre entre cuando hay ya también porque todo todas este esta",
    "it": "il lo la i gli le un uno una di del della dei delle e o ma non che chi si è sono era ha hanno in nel nella a al alla da dal "
    "con per su sul come più molto anche io tu lui lei noi loro mi ti ci suo sua questo questa quando se",
    "pt": "o a os as um uma de do da dos das e ou mas não que quem se é são era foi em no na nos nas ao à com por para como mais muito "
    "eu ele ela eles elas seu sua isso este esta quando já também porque ser está pelo pela",
    "nl": "de het een en of maar niet dat die dit deze is zijn was waren wordt werd heeft hebben ik je jij hij zij ze wij we in op aan "
    "van voor met bij uit naar om te als dan ook nog wel er zo over door tot geen haar hun",
    "sv": "och det att i en som är på för av med den till inte har de ett var om jag han hon vi man så men sig från eller när kan ska "
    "vid sin sina också mycket där här efter under hade",
    "pl": "i w na z się nie do to że jest o a po jak ale za co od przez dla był była było są ma go jego jej ich tym tej ten ta te tak "
    "już tylko który która które czy przy ze",
    "tr": "ve bir bu da de için ile çok ne o daha gibi kadar ama en var yok mi mı olan olarak sonra ben sen biz siz onlar her şey "
    "değil ki ya diye ise",
    "id": "yang dan di ke dari ini itu untuk pada dengan adalah tidak ada akan dalam juga saya kami kita mereka dia oleh atau karena "
    "bisa sudah telah seperti sebagai lebih para",
    "sw": "na ya wa kwa ni la za cha katika kuwa hii hiyo yake wake hilo huyo lakini kama pia sana watu alikuwa hivyo au yeye kila",
    "tl": "ang ng sa na mga at ay ni si kay ito siya niya ko mo ka para hindi may kung nang din rin sila namin ako isang",
    "da": "og i at det en den til er som på de med han af for ikke der var mig sig men et har om vi min havde ham hun nu over da fra du "
    "ud sin dem os op man hans hvor eller hvad skal selv her alle vil blev kunne ind når være",
    "fi": "ja on ei se hän että oli mutta kun niin kuin myös ovat hänen joka sen tämä minä sinä me te he olen olla jos vain nyt sitten "
    "siitä ole mitä vielä jo tai sitä ne mukaan",
    "hu": "a az és hogy nem is egy ez de ha meg már csak még el volt mint van azt vagy mert ezt ki kell én ő mi ti ők itt ott nagyon "
    "akkor után szerint lehet minden",
    "cs": "a v se na je to že s z do o i ve k pro za by jsem si jako ale jeho po které byl byla bylo jen jsou už tak nebo když mi co "
    "aby při také jak ze od má být není",
    "ro": "și în de la cu pe nu a o un este să se din că mai care pentru au fost ce i sau ca dar lui ei el ea îl am sunt avea prin după "
    "foarte când toate acest era al ai ale",
    "vi": "và là của có không được cho một người trong với các những này đã khi đó để từ như ở tôi ra cũng nhưng về đến vào rất lại "
    "mà sẽ anh chị ông bà nó họ thì nếu phải hay bị",
    "la": "et in est non ad cum ut quod qui quae sed si ex de per ab esse sunt aut nec enim hoc atque autem se ac a",
    "ru": "и в не на я что он с как это а то все она так его но да ты к у же вы за бы по ее мне было вот от меня еще нет о из ему "
    "когда даже ну ли если или быть был него до вас они для мы их чем была сам без при под где",
    "uk": "і й в у не на що я він з як це а то та вона так його але ти до за би по її мені було від ще ні про із йому коли навіть "
    "чи якщо або бути був вони для ми їх ніж була без при під де є",
    "ar": "في من على إلى عن أن إن التي الذي هذا هذه كان كانت لا ما لم قد هو هي و أو ثم مع بين كل بعد قبل عند لكن ذلك تلك هم",
    "fa": "و در به از که این را با است برای آن یک می بود تا بر او هم خود شد ما نیز اما یا هر شده باید های ها من نمی",
    "ur": "کے کی میں ہے کا اور سے کو نے پر یہ ہیں کہ اس وہ ایک بھی تھا نہیں تھی جو کر کیا ہو گیا ان تو ہی",
}  # fmt: skip
FUNCTION_WORDS = {"en": ENGLISH_FUNCTION_WORDS} | {
    code: frozenset(words.split()) for code, words in _OTHERS.items()
}

# The languages of a script; where there are several, the first is taken if no function words decide.
LANGUAGES_OF_SCRIPT = {
    "Latin": ("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "pl", "cs", "ro", "hu", "fi", "tr", "vi", "id", "sw", "tl",
              "la"),
    "Han": ("zh",), "Hiragana": ("ja",), "Katakana": ("ja",), "Hangul": ("ko",),
    "Thai": ("th",), "Lao": ("lo",), "Khmer": ("km",), "Myanmar": ("my",),
    "Cyrillic": ("ru", "uk"), "Arabic": ("ar", "fa", "ur"), "Greek": ("el",), "Hebrew": ("he",),
    "Armenian": ("hy",), "Georgian": ("ka",), "Ethiopic": ("am",), "Devanagari": ("hi",), "Bengali": ("bn",),
    "Tamil": ("ta",), "Telugu": ("te",), "Kannada": ("kn",), "Malayalam": ("ml",), "Gujarati": ("gu",),
    "Gurmukhi": ("pa",), "Oriya": ("or",), "Sinhala": ("si",), "Tibetan": ("bo",),
}  # fmt: skip
LANGUAGES = tuple(sorted({code for codes in LANGUAGES_OF_SCRIPT.values() for code in codes}))
