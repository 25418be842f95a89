"""Texts in Chinese, Japanese, Thai and Korean of realistic length: sentences drawn from small grammars, so that no two are alike.

print(made_text("zh", seed=0))
"""

import random

# Parts of a sentence in order, the alternatives of each between spaces; `end` closes a sentence, `between` stands between sentences.
_GRAMMARS = {
    "zh": (
        "昨天 今天早上 傍晚 后来 去年冬天 每逢周末 不久以前 下雨的时候",
        "老渔夫 小女孩 邻居家的孩子 图书管理员 厨师 两个学生 村长 卖花的姑娘 年轻的医生 我的外祖母",
        "在河边 在市场上 在学校门口 从山里 沿着旧城墙 在火车站 坐在窗前 在院子里的槐树下",
        "发现了 仔细地修理 悄悄带走了 买来 画出 收拾好 寻找 讲起 丢失了 送给朋友",
        "一只受伤的鸟 三本旧书 祖父的手表 红色的风筝 一封没有署名的信 半篮苹果 生锈的钥匙 一张地图 刚烤好的面包 那条蓝围巾",
        "，心里非常高兴 ，却没有告诉任何人 ，因为天快要黑了 ，大家都围过来看 ，然后慢慢走回家去 ，雨也渐渐停了",
    ),
    "ja": (
        "昨日 今朝 夕方 その後 去年の冬 週末になると 少し前に 雨の日に",
        "年老いた漁師は 小さな女の子は 隣の子供は 図書館の司書は 料理人は 二人の学生は 村長は 花売りの娘は 若い医者は 私の祖母は",
        "川のほとりで 市場で 学校の門の前で 山の中で 古い城壁に沿って 駅で 窓辺に座って 庭の木の下で",
        "傷ついた鳥を 三冊の古い本を 祖父の時計を 赤い凧を 名前のない手紙を 籠いっぱいの林檎を 錆びた鍵を 一枚の地図を 焼きたてのパンを あの青いマフラーを",
        "見つけて 丁寧に直して そっと持ち帰って 買って 描いて 片付けて 探して 友達に贈って",
        "とても喜んだ 誰にも言わなかった ゆっくり家に帰った みんなに見せた 静かに雨を眺めた 長い話を始めた",
    ),
    "th": (
        "เมื่อวานนี้ เช้าวันนี้ ตอนเย็น หลังจากนั้น ฤดูหนาวปีที่แล้ว ทุกวันหยุด ไม่นานมานี้ ขณะที่ฝนตก",
        "ชาวประมงแก่ เด็กหญิงตัวเล็ก ลูกของเพื่อนบ้าน บรรณารักษ์ พ่อครัว นักเรียนสองคน ผู้ใหญ่บ้าน คนขายดอกไม้ หมอหนุ่ม คุณยายของฉัน",
        "พบ ซ่อม แอบเอาไป ซื้อ วาดรูป เก็บ ตามหา เล่าเรื่อง ทำหาย มอบให้เพื่อน",
        "นกที่บาดเจ็บ หนังสือเก่าสามเล่ม นาฬิกาของปู่ ว่าวสีแดง จดหมายไม่ลงชื่อ แอปเปิลครึ่งตะกร้า กุญแจขึ้นสนิม แผนที่ใบหนึ่ง ขนมปังอบใหม่ ผ้าพันคอสีฟ้า",
        "ที่ริมแม่น้ำ ในตลาด หน้าประตูโรงเรียน บนภูเขา ใกล้กำแพงเมืองเก่า ที่สถานีรถไฟ ข้างหน้าต่าง ใต้ต้นไม้ในสวน",
        "แล้วดีใจมาก แต่ไม่ได้บอกใคร เพราะใกล้ค่ำแล้ว ทุกคนจึงมามุงดู แล้วค่อยๆเดินกลับบ้าน จนฝนหยุดตก",
    ),
    "ko": (
        "어제 오늘·아침 저녁에 그·뒤에 지난·겨울 주말마다 얼마·전에 비가·올·때",
        "늙은·어부는 어린·소녀는 이웃집·아이는 사서는 요리사는 두·학생은 마을·이장은 꽃·파는·아가씨는 젊은·의사는 우리·할머니는",
        "강가에서 시장에서 학교·앞에서 산속에서 옛·성벽을·따라 기차역에서 창가에·앉아 마당의·나무·아래에서",
        "다친·새를 헌·책·세·권을 할아버지의·시계를 빨간·연을 이름·없는·편지를 사과·반·바구니를 녹슨·열쇠를 지도·한·장을 갓·구운·빵을 파란·목도리를",
        "찾아서 고쳐서 몰래·가져가서 사서 그려서 챙겨서 친구에게·주어서",
        "무척·기뻐했다 아무에게도·말하지·않았다 천천히·집으로·돌아갔다 모두에게·보여·주었다 조용히·비를·바라보았다",
    ),
}  # fmt: skip
_SEPARATORS = {
    "zh": ("", "。"),
    "ja": ("", "。"),
    "th": ("", " "),
    "ko": (" ", ". "),
}  # of parts, of sentences


def made_text(language: str, seed: int, characters: int = 500) -> str:
    """A text of about so many characters, the same for the same seed."""
    generator = random.Random(f"{language}/{seed}")
    parts = [alternatives.split() for alternatives in _GRAMMARS[language]]
    inside, end = _SEPARATORS[language]
    text = ""
    while len(text) < characters:
        text += inside.join(generator.choice(words).replace("·", " ") for words in parts) + end
    return text.strip()


def with_changed_characters(text: str, share: float, seed: int) -> str:
    """The text with this share of its characters (not of its spaces) replaced by others of the same text."""
    generator = random.Random(seed)
    places = [place for place, character in enumerate(text) if character.isalpha()]
    letters, characters = sorted({text[place] for place in places}), list(text)
    for place in generator.sample(places, max(1, round(share * len(places)))):
        characters[place] = generator.choice([letter for letter in letters if letter != text[place]])
    return "".join(characters)
